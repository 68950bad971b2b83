"""Runs with counted n-grams as targets: bad input, one step, deaths, replay, resume."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog import TrainConfig, train
from mlxhog.checkpoint.run import Run, find
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.config.teachers import Counts
from mlxhog.data.batch import Batch
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError
from mlxhog.report.metrics import Result
from mlxhog.report.record import RunRecord
from mlxhog.report.run_page import tiles
from mlxhog.training import replay, teacher
from mlxhog.training.plan import make_plan
from tests.training.asking import endless, trained
from tests.training.small import largest_difference, parameters, small_config
from tests.training.test_completions import config_of as config_of_completions
from tests.training.test_deaths import assert_no_segment_stays
from tests.training.test_replay import kill_the_first_worker


def last_metrics(result: Result) -> dict[str, Any]:
    lines = (Path(result.run) / "metrics.jsonl").read_text().splitlines()
    metrics: dict[str, Any] = json.loads(lines[-1])
    return metrics


def test_a_teacher_is_refused_where_there_is_no_plain_text_to_count(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher: needs the whole text when the run begins"):
        small_config(tmp_path, teacher="counts", follow=str(tmp_path), steps=None)
    with pytest.raises(ConfigError, match="leave teacher or sampled_head out"):
        small_config(tmp_path, teacher="counts", sampled_head=9)
    with pytest.raises(ConfigError, match="has prompts and completions, and counts are of plain"):
        make_plan(config_of_completions(tmp_path, teacher="counts"))
    with pytest.raises(ConfigError, match="has vocab_size 999, and tokenizer bytes 320"):
        make_plan(small_config(tmp_path, teacher="counts", set="vocab_size=999"))
    with pytest.raises(ConfigError, match="weight is '1.5'"):
        TrainConfig(teacher="counts(weight=1.5)")


def test_its_numbers_are_given_inside_or_by_flat_names() -> None:
    assert TrainConfig(teacher="counts(weight=0.5)").teacher == Counts(weight=0.5)
    flat: Any = {"teacher_context": 5}
    assert TrainConfig(**flat).teacher == Counts(context=5)
    assert TrainConfig(teacher="off").teacher is None


@pytest.mark.slow
def test_its_memory_is_read_only_and_gone_with_the_run(tmp_path: Path) -> None:
    plan = make_plan(small_config(tmp_path, teacher="counts"))
    file, before = TokenFile.open(plan.data.train), len(os.listdir("/dev/fd"))
    with ExitStack() as stack:
        one = stack.enter_context(teacher.of_run(plan.config.teacher, file))
        assert one is not None
        batch = file.batch(np.array([0, 1]), 32)
        part = Batch(batch.x[1:], batch.y[1:], 0)
        np.testing.assert_array_equal(one.targets(part), one.targets(batch)[1:])
        with pytest.raises(ValueError, match="read-only"):
            one.counts.contexts[0, 0] = 1
    del one
    assert len(os.listdir("/dev/fd")) == before
    assert_no_segment_stays()


@pytest.mark.slow
def test_a_step_goes_elsewhere_and_its_loss_is_still_that_of_the_byte_that_came(
    tmp_path: Path,
) -> None:
    def run(**options: object) -> Result:
        common = {"steps": 1, "strategy": "serial", "schedule": "constant(warmup=0)"}
        return train(small_config(tmp_path, optimizer="sgd", lr=0.1, **common, **options))

    taught = {"teacher": "counts(weight=0.5)"}
    plain, by_mlx, by_torch = run(), run(**taught), run(**taught, workers="torch:cpu")
    for other in (by_mlx, by_torch):
        assert last_metrics(other)["loss"] == pytest.approx(last_metrics(plain)["loss"], abs=1e-5)
    moved, differ = (
        largest_difference(parameters(by_mlx), parameters(other)) for other in (plain, by_torch)
    )
    assert differ < 1e-5 < moved
    stored = (Path(by_mlx.run) / "config.yaml").read_text()
    assert "teacher:\n  name: counts\n  weight: 0.5\n" in stored


@pytest.mark.slow
def test_a_killed_worker_goes_on_with_the_teacher_and_the_record_replays(tmp_path: Path) -> None:
    config = endless(tmp_path, teacher="counts", workers="mlx:cpu*2", determinism="record")
    assert trained(config, kill_the_first_worker).restarts == 1
    assert_no_segment_stays()
    outcome = replay.replay(find("latest", Path(config.out)))
    assert outcome.difference is None
    assert outcome.deaths == 1


@pytest.mark.slow
def test_a_run_is_reported_beside_counts_of_the_same_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(small_config(tmp_path, eval_every=10))
    assert result.counts_bits_per_byte is not None
    assert result.counts_bits_per_byte < result.val_bits_per_byte  # type: ignore[operator]
    line = f"{result.counts_bits_per_byte:.3f}: this network does not beat them"
    assert f"counts of 7 bytes, without a network, have {line}" in summary(result)
    assert main(["show", result.run]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    assert f"counts {result.counts_bits_per_byte:.3f}" in str(
        tiles(RunRecord(Run(Path(result.run))))
    )
    assert last_metrics(result)["marks"]["counts"] == result.counts_bits_per_byte
