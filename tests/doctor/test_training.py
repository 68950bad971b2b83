"""A short run in which a worker is killed shows whether this machine can train."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxhog.doctor import training
from mlxhog.doctor.checks import Result
from mlxhog.errors import EnvironmentLacks
from tests.cli.test_cli import PROGRESS, RESULT, WORKER

pytestmark = pytest.mark.slow


def test_this_machine_trains_and_replaces_a_killed_worker() -> None:
    run, pace = training.check_training()
    assert run.result == Result.PASS, run.found
    assert "1 replaced" in run.found
    assert pace.name == "step time"
    assert pace.result != Result.FAIL


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
    assert training.judge_run(good, 4.0, 4.7, "").result == Result.PASS
    assert training.judge_run(replace(good, **changes), loss, 4.7, "").result == Result.FAIL


def test_a_run_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object, *, observer: object) -> None:
        raise EnvironmentLacks("no memory")

    monkeypatch.setattr(training, "train", refuse)
    (check,) = training.check_training()
    assert (check.result, check.found) == (Result.FAIL, "no memory")


def test_the_pace_is_that_of_a_run_whose_workers_are_all_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(training.os, "kill", lambda pid, number: killed.append(pid))
    watch = training.WorkerKiller()

    def see(seconds: float, state: str, pid: int) -> None:
        worker = replace(WORKER, state=state, pid=pid)
        workers = (replace(WORKER, state="running", pid=1), worker)
        step = int(100 * seconds)
        watch(replace(PROGRESS, elapsed_s=seconds, step=step, workers=workers))

    for seconds, state, pid in (
        (0.0, "running", 2),
        (0.2, "running", 2),  # killed here
        (0.5, "running", 2),  # nobody has noticed
        (1.0, "starting", 3),
        (1.5, "running", 3),
        (2.0, "running", 3),
        (2.0, "running", 3),  # training is over, its clock stands
        (2.0, "finished", 3),
    ):
        see(seconds, state, pid)
    assert killed == [2]
    assert watch.samples == [(1.5, 150), (2.0, 200)]


def test_an_interrupt_during_the_run_interrupts_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = replace(RESULT, status="interrupted")
    monkeypatch.setattr(training, "train", lambda config, *, observer: interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.check_training()
