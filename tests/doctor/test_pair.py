"""Doctor's comparison of both engines of a GPU with one of them, with speeds that tests choose."""

import math
from dataclasses import replace

import pytest

from mlxhog.base.load import Load, LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.doctor import pair
from mlxhog.doctor.checks import CheckResult
from mlxhog.errors import WorkerFailed
from mlxhog.theory import paired_test
from tests.doctor.test_checks import MAC

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.0)


@pytest.fixture
def measured(monkeypatch):
    """Doctor's check where a run with torch:mps is faster by each of some factors, in turn."""

    def check(gains, here=MAC, *, busy=False):
        teams = []

        def compared(together, alone, tell):
            teams[:] = [together, alone]
            return paired_test.judge([math.log(one) for one in gains], pair.PAIRS)

        monkeypatch.setattr(pair, "compared", compared)
        monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8 * busy, 2, 9.3))
        return *pair.check_pair(here, LoadWatch(), lambda part, step: None), teams

    return check


def test_a_gain_is_kept_with_its_interval_beside_the_gpu_workers_of_auto(measured):
    check, row, teams = measured(1.3 * one for one in NOISE)
    assert check.result == CheckResult.PASS
    assert 1 < row["low"] < row["gain"] < row["high"]
    assert row["gain"] == pytest.approx(1.3, rel=0.01)
    assert row["model"] in check.found
    assert teams == ["mlx:gpu,torch:mps", "mlx:gpu"]
    *_, teams = measured(NOISE, replace(MAC, chip="Apple M2 Ultra", cores=16))
    assert teams == ["mlx:gpu,mlx:gpu,torch:mps", "mlx:gpu,mlx:gpu"]


def test_a_busy_machine_and_one_without_both_engines_have_no_result(measured):
    check, row, _ = measured(NOISE, busy=True)
    assert (check.result, row) == (CheckResult.UNCLEAR, None)
    assert check.found.startswith("cannot be told: busy machine")
    for here, lack in (
        (Machine("linux", "x86_64", 2, 8 << 30, "", MAC.frameworks), "macOS on Apple silicon"),
        (replace(MAC, frameworks=frozenset({"mlx"})), "torch:mps needs torch"),
    ):
        check, row, teams = measured(NOISE, here)
        assert (check.result, row, teams) == (CheckResult.ABSENT, None, [])
        assert lack in check.found


def test_a_pair_that_cannot_train_fails_with_the_reason(monkeypatch):
    def fail(*_):
        raise WorkerFailed("worker 2 lost its GPU")

    monkeypatch.setattr(pair, "compared", fail)
    check, row = pair.check_pair(MAC, LoadWatch(), lambda part, step: None)
    assert (check.result, check.found, row) == (CheckResult.FAIL, "worker 2 lost its GPU", None)
    assert "--workers mlx:gpu,torch:mps" in check.consequence
