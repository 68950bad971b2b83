"""A checkpoint writes text on every backend, and the command prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxhog import checkpoint, machine, run
from mlxhog.cli import main
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.live.model import open_model
from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import XLSTMLargeConfig


@pytest.fixture
def saved_run(tmp_path: Path) -> run.Run:
    """A run with a checkpoint of a tiny model that has learnt nothing."""
    config = XLSTMLargeConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_heads=2)
    made = run.create(tmp_path / "runs", "small")
    checkpoint.save(
        made,
        step=0,
        params=init_params(config, seed=0),
        model_config=config.to_dict(),
        optimizer={},
        state={},
        tokenizer=ByteTokenizer(),
    )
    return made


def answer(found: run.Run, backend: str, **sampling: float) -> str:
    model = open_model(found.name, root=found.directory.parent, backend=backend)
    sampler = Sampler(**sampling)  # type: ignore[arg-type]
    return "".join(model.write("The ", sampler=sampler, max_new_tokens=40))


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_the_same_seed_writes_the_same_text_twice(saved_run, backend):
    first = answer(saved_run, backend, seed=1)
    assert first
    assert answer(saved_run, backend, seed=1) == first
    assert answer(saved_run, backend, seed=2) != first


def test_both_frameworks_choose_the_same_likeliest_tokens(saved_run):
    texts = {answer(saved_run, name, temperature=0.0) for name in ("torch:cpu", "mlx:cpu")}
    assert len(texts) == 1


def test_generate_prints_the_prompt_and_the_answer(saved_run, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("The ")
    words = [
        "generate",
        str(saved_run.directory),
        "--prompt",
        f"@{tmp_path / 'prompt.txt'}",
        "--max-tokens=40",
        "--temp=1",
        "--seed=1",
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text == "The " + answer(saved_run, "torch:cpu", seed=1) + "\n"
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] + told["text"] + "\n" == text


def test_a_run_without_a_checkpoint_cannot_write(tmp_path):
    made = run.create(tmp_path, "empty")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        open_model("latest", root=made.directory.parent, backend="torch:cpu")


def test_a_backend_that_is_not_there_is_named(saved_run, monkeypatch):
    linux = machine.Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"torch"}))
    monkeypatch.setattr(machine, "here", lambda: linux)
    with pytest.raises(EnvironmentLacks, match="macOS on Apple silicon"):
        open_model("latest", root=saved_run.directory.parent, backend="torch:mps")


def test_a_run_that_is_not_there_is_an_error_with_exit_code_2(saved_run, capsys):
    out = str(saved_run.directory.parent)
    assert main(["generate", "lastest", "--out", out]) == 2
    assert "did you mean 'latest'?" in capsys.readouterr().err
