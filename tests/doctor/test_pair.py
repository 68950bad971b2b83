"""Doctor's comparison of both engines of a GPU with one of them, with speeds that tests choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from mlxhog import TrainConfig
from mlxhog.doctor import pair
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.pair import ALONE, TOGETHER
from mlxhog.errors import WorkerFailed
from mlxhog.machine.load import Load
from mlxhog.machine.machine import Machine
from tests.doctor.test_frameworks import BUSY, MAC, QUIET

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workers of each run so far, on a quiet machine."""
    looked_at(monkeypatch, QUIET)
    return []


def looked_at(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    class Watch:
        def look(self) -> Load:
            return load

    monkeypatch.setattr(pair, "LoadWatch", Watch)


def measured(
    monkeypatch: pytest.MonkeyPatch, runs: list[str], gains: Iterable[float], here: Machine = MAC
) -> tuple[Any, Any]:
    """Doctor's check where the pair is faster by each of `gains`, in turn."""
    of_pairs: Iterator[float] = iter(gains)

    def speed(config: TrainConfig) -> float:
        runs.append(config.workers)
        return 1000.0 * (next(of_pairs) if config.workers == TOGETHER else 1.0)

    monkeypatch.setattr(pair, "_tokens_per_s", speed)
    return pair.check_pair(here, lambda part, step: None)


def test_a_gain_is_kept_with_its_interval(monkeypatch: pytest.MonkeyPatch, runs: list[str]) -> None:
    check, row = measured(monkeypatch, runs, (1.3 * one for one in NOISE))
    assert check.result == CheckResult.PASS
    assert 1 < row["low"] < row["gain"] < row["high"]
    assert row["gain"] == pytest.approx(1.3, rel=0.01)
    assert row["model"] in check.found


def test_a_loss_and_no_difference_are_results_too(
    monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    check, row = measured(monkeypatch, runs, (0.8 * one for one in NOISE))
    assert check.result == CheckResult.PASS
    assert row["high"] < 1
    check, row = measured(monkeypatch, runs, NOISE)
    assert (check.result, row["pairs"]) == (CheckResult.PASS, pair.PAIRS)
    assert row["low"] < 1 < row["high"]


def test_the_first_run_of_a_pair_alternates(
    monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    measured(monkeypatch, runs, NOISE)
    assert runs == [ALONE, TOGETHER, TOGETHER, ALONE] * (pair.PAIRS // 2)


def test_a_busy_machine_has_no_result(monkeypatch: pytest.MonkeyPatch, runs: list[str]) -> None:
    looked_at(monkeypatch, BUSY)
    check, row = measured(monkeypatch, runs, NOISE)
    assert (check.result, row) == (CheckResult.UNCLEAR, None)
    assert check.found.startswith("cannot be told: busy machine")


def test_a_pair_that_cannot_train_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: TrainConfig) -> float:
        raise WorkerFailed("worker 2 lost its GPU")

    monkeypatch.setattr(pair, "_tokens_per_s", fail)
    check, row = pair.check_pair(MAC, lambda part, step: None)
    assert (check.result, check.found, row) == (CheckResult.FAIL, "worker 2 lost its GPU", None)
    assert "--workers mlx:gpu,torch:mps" in check.consequence


def test_a_machine_without_both_engines_has_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    linux = Machine("linux", "x86_64", 2, 8 << 30, "", MAC.frameworks)
    for here in (linux, Machine(**{**vars(MAC), "frameworks": frozenset({"mlx"})})):
        check, row = measured(monkeypatch, runs, NOISE, here)
        assert (check.result, row) == (CheckResult.ABSENT, None)
    assert not runs
