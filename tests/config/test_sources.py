"""Names of other tools are answered with ours."""

import pytest

from mlxhog.cli import main
from mlxhog.config import sources
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import suggestion


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num-workers", "did you mean '--workers'?"),
        ("--backend", "did you mean '--workers'?"),
        ("--output-dir", "did you mean '--out'?"),
        ("--batch_size", "did you mean '--batch-size'?"),
        ("--per_device_train_batch_size", "did you mean '--batch-size'?"),
        ("--max_iters", "did you mean '--steps'?"),
        ("--grad_clip", "did you mean '--clip'?"),
        ("--block_size", "did you mean '--seq-len'?"),
        ("--hidden-size", "it is a field of the model"),
        ("--n_layer", "it is a field of the model"),
        ("--prompt", "mlxhog generate latest --prompt"),
        ("--vocab-size", "--tokenizer bpe:N"),
        ("--steps-per-report", "metrics.jsonl"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(flag, message, capsys):
    assert main(["train", f"{flag}=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no flag {flag!r}; ")
    assert message in line


def test_it_is_the_option_that_the_command_has(capsys):
    assert main(["generate", "latest", "--max-length", "3"]) == 2
    assert "did you mean '--max-new-tokens'?" in capsys.readouterr().err
    assert main(["generate", "--model", "latest"]) == 2
    assert "named without a flag" in capsys.readouterr().err


def test_a_key_of_a_file_is_answered_too(tmp_path, capsys):
    (tmp_path / "conf.yaml").write_text("max_iters: 3\n")
    assert main(["train", "-c", str(tmp_path / "conf.yaml")]) == 2
    assert "no option 'max_iters'; did you mean 'steps'?" in capsys.readouterr().err


def test_no_name_of_ours_is_taken_for_one_of_another_tool():
    spec = options(TrainConfig)
    names = {*spec, *(alias for each in spec.values() for alias in each.aliases)}
    assert not names & sources._OURS.keys()


def test_a_typing_error_is_answered_with_the_nearest_name():
    assert suggestion("--lrr", ["--lr", "--out"]) == "; did you mean '--lr'?"
    assert suggestion("--zzz", ["--lr", "--out"]) == ""
