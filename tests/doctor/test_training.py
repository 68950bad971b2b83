"""A short run in which a worker is killed shows whether this machine can train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxhog.doctor import training
from mlxhog.doctor.checks import Result
from mlxhog.errors import EnvironmentLacks
from tests.cli.test_cli import RESULT


def test_this_machine_trains_and_replaces_a_killed_worker() -> None:
    check = training.examine()
    assert check.result == Result.PASS, check.found
    assert "1 replaced" in check.found


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        (4.8, {}),
        (float("inf"), {}),
        (float("nan"), {}),
        (4.0, {"restarts": 0}),
        (4.0, {"status": "diverged"}),
    ],
)
def test_a_run_that_learns_nothing_or_loses_a_worker_fails(
    loss: float, changes: dict[str, object]
) -> None:
    good = replace(RESULT, restarts=1)
    assert training.judge(good, 4.0, 4.7, "").result == Result.PASS
    assert training.judge(replace(good, **changes), loss, 4.7, "").result == Result.FAIL


def test_a_run_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object, *, observer: object) -> None:
        raise EnvironmentLacks("no memory")

    monkeypatch.setattr(training, "train", refuse)
    assert training.examine().found == "no memory"


def test_an_interrupt_during_the_run_interrupts_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = replace(RESULT, status="interrupted")
    monkeypatch.setattr(training, "train", lambda config, *, observer: interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.examine()
