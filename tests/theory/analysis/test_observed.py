"""Staleness and lost updates as runs show them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from mlxhog.checkpoint.run import Run
from mlxhog.errors import RunError, WorkerFailed
from mlxhog.theory.analysis.analyze import probe_run
from mlxhog.theory.staleness import ObservedStaleness, of_run
from mlxhog.training.trainer import train
from tests.tolerances import TWO_DIVISIONS, assert_close
from tests.training.small import small_config

pytestmark = pytest.mark.slow


def test_a_run_of_two_workers_records_how_old_each_of_its_steps_was(tmp_path: Path) -> None:
    result = train(small_config(tmp_path, workers="mlx:cpu*2", steps=120))
    assert sum(result.staleness.values()) == result.steps == 120
    weighted = sum(worker.steps * worker.mean_staleness for worker in result.workers)
    ages = sum(age * steps for age, steps in result.staleness.items())
    assert_close(weighted, ages, TWO_DIVISIONS)
    assert ages > 0  # the two overlapped
    assert list(result.staleness) == sorted(result.staleness)
    found = of_run(Run(Path(result.run)), "lossless")
    assert found is not None
    assert found.histogram == result.staleness
    assert (found.source, found.workers, found.steps) == ("run", 2, 120)
    assert found.largest == max(result.staleness)
    assert found.lost_update_rate == 0.0
    assert found.to_json()["histogram"] == result.to_json()["staleness"]


def test_a_run_that_was_resumed_counts_both_commands(tmp_path: Path) -> None:
    first = train(small_config(tmp_path, steps=20))
    run = Run(Path(first.run))
    other = run.read_metrics()[-1] | {"supervisor_pid": 0, "elapsed_s": 0.0}  # another process
    run.metrics_path.write_text(json.dumps(other) + "\n")
    second = train(small_config(tmp_path, steps=30, resume=first.run))
    assert second.run == first.run
    found = of_run(run, "lossless")
    assert found is not None
    assert found.histogram == {0: 50}  # one worker is never stale
    assert found.mean == found.largest == 0


def test_a_probe_shows_two_racy_workers_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    # settings under which a lock-free run of two workers would be refused
    config = small_config(tmp_path, strategy="sync", read="live", max_workers=1, steps=5)
    told: list[str] = []
    found = probe_run(config, workers="mlx:cpu*2", seconds=1.0, tell=told.append)
    assert (found.source, found.workers, found.write) == ("probe", 2, "racy")
    assert found.steps == sum(found.histogram.values()) > 5
    assert found.lost_update_rate is not None
    assert 0 <= found.lost_update_rate < 1
    assert found.tokens_per_s is not None
    assert found.tokens_per_s > 0
    assert told
    assert not list(scratch.glob("mlxhog-analyze-*"))
    assert not Path(config.out).exists()


def test_a_probe_too_short_for_a_step_says_so(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    with pytest.raises(WorkerFailed, match="give it longer, as in --seconds 30"):
        probe_run(config, workers="mlx:cpu*2", seconds=1e-9, tell=lambda step: None)


def observed(histogram: dict[int, int]) -> ObservedStaleness:
    return ObservedStaleness(
        source="run",
        workers=2,
        write="racy",
        steps=sum(histogram.values()),
        mean=1.0,
        largest=max(histogram, default=0),
        histogram=histogram,
        lost_update_rate=None,
        tokens_per_s=None,
    )


def test_quantiles_are_the_smallest_age_that_enough_steps_do_not_exceed() -> None:
    found = observed({0: 10, 1: 80, 2: 9, 50: 1})
    wanted = {0.0: 0, 0.1: 0, 0.11: 1, 0.9: 1, 0.99: 2, 0.995: 50, 1.0: 50}
    assert {share: found.quantile(share) for share in wanted} == wanted
    assert observed({}).quantile(0.5) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.quantile(1.5)


def metrics(tmp_path: Path, *lines: dict[str, object]) -> Run:
    run = Run(tmp_path)
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_metrics_without_a_histogram_still_have_a_mean_and_a_largest(tmp_path: Path) -> None:
    first = {"slot": 1, "backend": "torch:cpu", "steps": 30, "dropped": 0}
    second = {"slot": 2, "backend": "mlx:cpu", "steps": 12, "dropped": 2}
    workers = [
        first | {"mean_staleness": 1.0, "max_staleness": 4},
        second | {"mean_staleness": 2.0, "max_staleness": 9},
    ]
    line = {"step": 42, "elapsed_s": 2.0, "lost_update_rate": 0.25, "workers": workers}
    found = of_run(metrics(tmp_path, line), "racy")
    assert found is not None
    assert (found.steps, found.mean, found.largest) == (40, 1.25, 9)
    assert found.quantile(0.5) is None
    assert found.lost_update_rate == 0.25


def test_a_run_without_steps_has_nothing_to_show_and_foreign_lines_are_refused(
    tmp_path: Path,
) -> None:
    assert of_run(metrics(tmp_path), "racy") is None
    with pytest.raises(RunError, match=r"metrics.jsonl holds a line that is no progress"):
        of_run(metrics(tmp_path, {"step": 3, "elapsed_s": 1.0}), "racy")
