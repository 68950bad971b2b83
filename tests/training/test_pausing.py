"""Workers pause for a checkpoint: the longest wait, and the message if they do not."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxhog import train
from mlxhog.arena import Arena, plan
from mlxhog.arena.requests import Refused
from mlxhog.arena.workers import State
from mlxhog.backends.backend import Grads
from mlxhog.data.batch import Batch
from mlxhog.report.metrics import Progress
from mlxhog.training import checkpoints, worker
from mlxhog.training.checkpoints import PAUSE_S, Saver, pause_limit_s
from mlxhog.training.gradients import Gradients
from mlxhog.training.job import Job
from mlxhog.training.session import WorkerSession
from tests.training.small import small_config


@pytest.fixture
def arena() -> Any:
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    with Arena.create(plan({"w": parameter}, max_workers=3, n_tickets=8)) as arena:
        yield arena


BEGUN = "gradients-begun"


class Busy:
    """The workers of a run: they never hold still, and one evaluates for n looks."""

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks

    def holding_still(self) -> bool:
        return False

    def has_side_job(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


class Pausing(WorkerSession):
    """A session of workers that do not pause; a wait for them takes no time."""

    def __init__(self, arena: Arena, supervisor: Any, interrupts: int = 0) -> None:
        self.arena, self.supervisor = arena, supervisor
        self.limits_s: list[float] = []
        self._interrupts = interrupts

    def until(
        self,
        condition: Callable[[], bool],
        doing: object,
        limit_s: float = 0.0,
        *,
        even_if_interrupted: bool = False,
    ) -> bool:
        assert self.arena.counters.load("pause") == 1
        self.limits_s.append(limit_s)
        return condition()

    def interrupts(self) -> int:
        return self._interrupts

    def report(self, message: str) -> None:
        pass

    def drain(self) -> None:
        pass


def refusal(session: WorkerSession) -> str:
    """The message of a refused checkpoint."""
    saver = Saver(session, *4 * [None])  # type: ignore[arg-type]
    with pytest.raises(Refused) as error:
        saver.save_while_training()
    return str(error.value)


def test_slow_workers_have_the_time_of_their_steps_to_pause(arena: Arena) -> None:
    for slot, step_s in ((1, 2.0), (2, 8.0), (3, 100.0)):
        entry = arena.workers.entry(slot)
        entry.state = State.RUNNING
        entry.steps, entry.compute_ns = 5, round(5e9 * step_s)
    arena.workers.entry(3).state = State.FREE  # it has left
    assert pause_limit_s(arena) == 2.0 + 8.0 + 8.0
    arena.workers.entry(2).state = State.FREE
    assert pause_limit_s(arena) == PAUSE_S
    session = Pausing(arena, Busy())
    assert "did not finish their step and pause within 10 s" in refusal(session)
    assert arena.counters.load("pause") == 0


def with_long_steps(job: Job) -> None:
    """A worker that counts its gradients, which take 0.4 seconds, in a file. Children import it."""
    whole, numbers = Gradients.of, itertools.count(1)

    def slow(gradients: Gradients, batches: list[Batch]) -> tuple[float, Grads]:
        (job.run_dir / BEGUN).write_text(str(next(numbers)))
        time.sleep(0.4)
        return whole(gradients, batches)

    Gradients.of = slow  # type: ignore[method-assign]
    worker.main(job)


@pytest.mark.slow
def test_an_interrupt_gives_slow_workers_the_time_of_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def interrupt(progress: Progress) -> None:
        begun = sum(int(path.read_text() or 0) for path in (tmp_path / "runs").glob(f"*/{BEGUN}"))
        if begun > progress.step >= 1 and not steps:  # a step is in hand
            steps.append(progress.step)
            signal.raise_signal(signal.SIGINT)

    limits_s: list[float] = []

    def noted(arena: Arena) -> float:
        limits_s.append(pause_limit_s(arena))
        return limits_s[-1] + 60  # the step in hand may take longer than those before it

    monkeypatch.setattr(checkpoints, "PAUSE_S", 0.05)
    monkeypatch.setattr(checkpoints, "pause_limit_s", noted)
    monkeypatch.setattr(worker, "main", with_long_steps)
    result = train(small_config(tmp_path, steps=9), observer=interrupt)
    assert result.status == "interrupted"
    assert limits_s[0] >= 2 * 0.4
    assert result.steps > steps[0]  # the step in hand, which takes longer than `PAUSE_S`


def test_workers_that_wait_amid_a_step_for_one_that_evaluates_are_given_longer(
    arena: Arena,
) -> None:
    session = Pausing(arena, Busy(looks=3))
    with session.paused(1.0) as still:
        assert not still
    assert session.limits_s == [1.0] * 4


def test_a_request_for_a_checkpoint_is_refused_while_the_run_ends(
    arena: Arena,
) -> None:
    session = Pausing(arena, Busy(), interrupts=1)
    assert refusal(session) == "the run is ending and saves a checkpoint then"
