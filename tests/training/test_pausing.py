"""Workers pause for a checkpoint: the longest wait, and the message if they do not."""

import itertools
import signal
import time
from types import SimpleNamespace

import pytest

from mlxhog import train
from mlxhog.arena import Arena, plan
from mlxhog.arena.requests import Refused
from mlxhog.arena.workers import State
from mlxhog.training import checkpoints, worker
from mlxhog.training.checkpoints import PAUSE_S, Saver, pause_limit_s
from mlxhog.training.gradients import Gradients
from mlxhog.training.session import WorkerSession
from tests.training.small import small_config


@pytest.fixture
def arena():
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    with Arena.create(plan({"w": parameter}, max_workers=3, n_tickets=8)) as arena:
        yield arena


BEGUN = "gradients-begun"


class Busy:
    """The workers of a run: they never hold still, and one evaluates for n looks."""

    def __init__(self, looks=0):
        self.looks = looks

    def holding_still(self):
        return False

    def has_side_job(self):
        self.looks -= 1
        return self.looks >= 0


class Pausing(WorkerSession):
    """A session of workers that do not pause; a wait for them takes no time."""

    def __init__(self, arena, supervisor, interrupts=0):
        self.arena, self.supervisor = arena, supervisor
        self.limits_s = []
        self._interrupts = interrupts

    def until(self, condition, doing, limit_s=0.0, *, even_if_interrupted=False):
        assert self.arena.counters.load("pause") == 1
        self.limits_s.append(limit_s)
        return condition()

    def interrupts(self):
        return self._interrupts

    def report(self, message):
        pass

    def drain(self):
        pass


def refusal(session):
    """The message of a refused checkpoint."""
    saver = Saver(session, *4 * [None])
    with pytest.raises(Refused) as error:
        saver.save_while_training()
    return str(error.value)


def test_slow_workers_have_the_time_of_their_steps_to_pause(arena):
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


def with_long_steps(job):
    """A worker that counts its gradients, which take 0.4 seconds, in a file. Children import it."""
    whole, numbers = Gradients.of, itertools.count(1)

    def slow(gradients, batches):
        (job.run_dir / BEGUN).write_text(str(next(numbers)))
        time.sleep(0.4)
        return whole(gradients, batches)

    Gradients.of = slow
    worker.main(job)


@pytest.mark.slow
def test_an_interrupt_gives_slow_workers_the_time_of_their_steps(tmp_path, monkeypatch):
    steps = []

    def interrupt(progress):
        begun = sum(int(path.read_text() or 0) for path in (tmp_path / "runs").glob(f"*/{BEGUN}"))
        if begun > progress.step >= 1 and not steps:  # a step is in hand
            steps.append(progress.step)
            signal.raise_signal(signal.SIGINT)

    limits_s = []

    def noted(arena):
        limits_s.append(pause_limit_s(arena))
        return limits_s[-1] + 60  # the step in hand may take longer than those before it

    monkeypatch.setattr(checkpoints, "PAUSE_S", 0.05)
    monkeypatch.setattr(checkpoints, "pause_limit_s", noted)
    monkeypatch.setattr(worker, "main", with_long_steps)
    result = train(small_config(tmp_path, steps=9), observer=interrupt)
    assert result.status == "interrupted"
    assert limits_s[0] >= 2 * 0.4
    assert result.steps > steps[0]  # the step in hand, which takes longer than `PAUSE_S`


def test_workers_that_wait_amid_a_step_for_one_that_evaluates_are_given_longer(arena):
    session = Pausing(arena, Busy(looks=3))
    with session.paused(1.0) as still:
        assert not still
    assert session.limits_s == [1.0] * 4


def test_a_request_for_a_checkpoint_is_refused_while_the_run_ends(arena):
    session = Pausing(arena, Busy(), interrupts=1)
    assert refusal(session) == "the run is ending and saves a checkpoint then"
