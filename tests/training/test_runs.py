"""The files that a run leaves, and how it resumes."""

import gc
import json
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.errors import CheckpointError, ConfigError, DataError
from mlxhog.models import families
from mlxhog.report.record import RunRecord
from mlxhog.report.run_page import tiles
from tests.training.small import checkpoint_of, mixed_model, parameters, small_config


@pytest.mark.slow
def test_memory_of_a_run_is_freed_at_its_end_without_the_garbage_collector(tmp_path):
    gc.collect()
    gc.disable()
    try:
        before = sum(type(one) is Arena for one in gc.get_objects())
        train(small_config(tmp_path, steps=4))
        assert sum(type(one) is Arena for one in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.slow
def test_after_a_resume_late_in_an_epoch_later_epochs_see_every_sequence(tmp_path):
    """The regression of Lightning-AI/litgpt#1712."""
    options = {"batch_size": 8}  # so that an epoch has few steps
    probe = train(small_config(tmp_path, steps=1, **options))
    state = checkpoint_of(probe).state
    tickets = state["ledger"]["n"]
    late = int(tickets * 0.9)
    first = train(small_config(tmp_path, steps=late, workers="mlx:cpu*2", **options))
    rest = 2 * tickets - late
    more = small_config(tmp_path, steps=rest, workers="mlx:cpu*2", resume=first.run, **options)
    second = train(more)
    state = checkpoint_of(second).state
    assert state["ledger"]["epoch"] == 2
    assert state["ledger"]["watermark"] == 0
    assert state["ledger"]["done"] == []
    assert state["ledger"]["torn"] == 0


def test_another_architecture_cannot_take_up_a_run(tmp_path):
    first = train(small_config(tmp_path, steps=2))
    other = tmp_path / "wide.yaml"
    other.write_text((tmp_path / "small.yaml").read_text().replace("32", "64"))
    with pytest.raises(CheckpointError, match="hidden_size"):
        train(small_config(tmp_path, steps=2, resume=first.run, model=str(other)))


def test_a_batch_that_cannot_be_filled_is_refused_before_anything_starts(tmp_path):
    with pytest.raises((ConfigError, DataError), match="seq"):
        train(small_config(tmp_path, seq_len=1_000_000))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_mixed_stack_learns_and_resumes_from_its_checkpoint(tmp_path, capsys):
    common = {
        "model": mixed_model(tmp_path),
        "eval_every": "1h",
        "steps": 40,
    }
    two = {"workers": "mlx:cpu*2", **common}
    first = train(small_config(tmp_path, strategy="sync", **two))
    second = train(small_config(tmp_path, strategy="hogwild", resume=first.run, **two))
    assert (first.status, second.status) == ("done", "done")
    assert first.val_bits_per_byte is not None
    assert second.val_bits_per_byte is not None
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.0  # a uniform guess has 8.3

    loaded = checkpoint_of(second)
    cfg = families.read(loaded.config)
    assert (cfg.model_type, cfg.bos_token_id) == ("xlstm_v1", 256)
    assert parameters(second).keys() == families.param_spec(cfg).keys()

    words = ["generate", str(second.run), "--prompt", "lock ", "--temperature", "0", "--json"]
    answers = []
    for backend in ("torch:cpu", "mlx:cpu"):
        assert main([*words, "--max-new-tokens", "12", "--backend", backend]) == 0
        answers.append(json.loads(capsys.readouterr().out)["text"])
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_run_is_reported_beside_counts_of_the_same_text(tmp_path, capsys):
    result = train(small_config(tmp_path, eval_every=10))
    assert result.counts_bits_per_byte is not None
    assert result.counts_bits_per_byte < result.val_bits_per_byte
    line = f"{result.counts_bits_per_byte:.3f}: this network does not beat them"
    assert f"counts of 7 bytes, without a network, have {line}" in summary(result)
    assert main(["show", result.run]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    assert f"counts {result.counts_bits_per_byte:.3f}" in str(
        tiles(RunRecord(Run(Path(result.run))))
    )
    metrics = (Path(result.run) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["marks"]["counts"] == result.counts_bits_per_byte
