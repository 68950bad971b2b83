"""Doctor's comparison of both engines of a GPU with one of them, with speeds that tests choose."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.doctor import pair
from mlxhog.doctor.checks import CheckResult
from mlxhog.errors import WorkerFailed
from tests.doctor.test_backends import BUSY, MAC, QUIET
from tests.pairs import each_of

Measured = Callable[..., Any]

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.0)
ALONE, TOGETHER = "mlx:gpu", "mlx:gpu,torch:mps"


class Watch(LoadWatch):
    """A watch that saw this load."""

    def __init__(self, load):
        self.load = load

    def look(self):
        return self.load


@pytest.fixture
def measured(monkeypatch):
    """Doctor's check where a run with torch:mps is faster by each of some factors, in turn."""

    def check(gains, load=QUIET, here=MAC):
        teams, of_pairs = list[str](), iter(gains)

        def run(log, number, tell):
            teams[:] = [side.config.workers for side in log.comparison.sides]
            return SimpleNamespace(log_speed=math.log(next(of_pairs)))

        monkeypatch.setattr(pair, "run_pair", run)
        monkeypatch.setattr(pair, "Comparison", lambda sides, terms: SimpleNamespace(sides=sides))
        return *pair.check_pair(here, Watch(load), lambda part, step: None), teams

    return check


def test_a_gain_is_kept_with_its_interval(measured):
    check, row, _ = measured(1.3 * one for one in NOISE)
    assert check.result == CheckResult.PASS
    assert 1 < row["low"] < row["gain"] < row["high"]
    assert row["gain"] == pytest.approx(1.3, rel=0.01)
    assert row["model"] in check.found


def test_the_other_team_has_the_gpu_workers_that_auto_has_on_this_chip(measured):
    ultra = replace(MAC, chip="Apple M2 Ultra", cores=16)
    *_, teams = measured(NOISE, here=ultra)
    assert teams == [f"{ALONE},{TOGETHER}", f"{ALONE},{ALONE}"]


def test_a_busy_machine_has_no_result(measured):
    check, row, _ = measured(NOISE, BUSY)
    assert (check.result, row) == (CheckResult.UNCLEAR, None)
    assert check.found.startswith("cannot be told: busy machine")


def test_a_pair_that_cannot_train_fails_with_the_reason(monkeypatch):
    def fail(*_):
        raise WorkerFailed("worker 2 lost its GPU")

    monkeypatch.setattr(pair, "compared", fail)
    check, row = pair.check_pair(MAC, Watch(QUIET), lambda part, step: None)
    assert (check.result, check.found, row) == (CheckResult.FAIL, "worker 2 lost its GPU", None)
    assert f"--workers {TOGETHER}" in check.consequence


@each_of(
    ("here", "lack"),
    [
        (Machine("linux", "x86_64", 2, 8 << 30, "", MAC.frameworks), "macOS on Apple silicon"),
        (replace(MAC, frameworks=frozenset({"mlx"})), "torch:mps needs torch"),
    ],
)
def test_a_machine_without_both_engines_has_nothing_to_compare(measured, here, lack):
    check, row, teams = measured(NOISE, here=here)
    assert (check.result, row, teams) == (CheckResult.ABSENT, None, [])
    assert lack in check.found
