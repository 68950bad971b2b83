"""The judgement of a run's workers: silent, at rest, or dead too often."""

from contextlib import ExitStack
from unittest import mock

import pytest

from mlxhog.arena import worker_pool
from mlxhog.arena.workers import Phase, State
from mlxhog.base.workers import WorkerSpec
from mlxhog.errors import WorkerFailed
from mlxhog.training.plan import make_plan
from mlxhog.training.processes import LEAVE_S, RESTART_WINDOW_S
from mlxhog.training.session import Session
from tests.training.small import small_config

TIMEOUT_S = 60.0
POLL_S = 0.05


def a_process(**_):
    process = mock.Mock(sentinel=0, pid=0, exitcode=None)
    process.is_alive = lambda: process.exitcode is None
    process.kill = lambda: setattr(process, "exitcode", -9)
    return process


class Clock:
    def __init__(self, monkeypatch):
        self.ns = 10**12
        for module in ("arena.process", "arena.workers", "training.processes"):
            monkeypatch.setattr(f"mlxhog.{module}.monotonic_ns", lambda: self.ns)

    def wait(self, seconds):
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Watched(Session):
    """A session that keeps its messages."""

    def report(self, message):
        self.messages.append(message)

    def drain(self):
        pass


@pytest.fixture
def session(clock, tmp_path, monkeypatch):
    """The session of two spawned workers, with slots for two others."""
    monkeypatch.setattr("mlxhog.training.processes.MAX_NONFINITE", 3)
    monkeypatch.setattr(worker_pool, "get_context", lambda _: mock.Mock(Process=a_process))
    monkeypatch.setattr(worker_pool.connection, "wait", lambda *_, timeout: clock.wait(POLL_S))
    plan = make_plan(
        small_config(tmp_path, workers="mlx:cpu*2", heartbeat_timeout_s=TIMEOUT_S, max_workers=4)
    )
    with ExitStack() as stack:
        session = Watched(plan, tmp_path, stack=stack)
        session.messages = []
        session.spawn()
        yield session


def run(session, phase=Phase.COMPUTE):
    for seat in session.seats:
        session.entry(seat).state = State.RUNNING
        session.entry(seat).beat(phase)


def die(session, slot=1):
    session.pool[slot].kill()
    session.poll()


def test_a_pause_of_the_whole_group_is_no_silence_of_a_worker(session, clock):
    run(session)
    for _ in range(10):
        session.poll()
        clock.wait(10 * TIMEOUT_S)  # Ctrl-Z, or the lid of a laptop
    session.poll()
    assert session.restarts == 0
    assert all(session.pool[slot].is_alive() for slot in (1, 2))


def test_a_worker_that_is_silent_while_it_is_watched_is_replaced(session):
    run(session)
    silent, other = session.seats
    for part, restarts in ((0.9, 0), (0.2, 1)):
        for _ in range(round(part * TIMEOUT_S / POLL_S)):
            session.entry(other).beat()
            session.poll()
        assert session.restarts == session.entry(silent).restarts == restarts
    assert "no sign of life for 60 s" in session.messages[0]


@pytest.mark.parametrize("gets_up", [True, False])
def test_only_deaths_of_a_worker_that_was_up_are_forgotten_in_time(session, clock, gets_up):
    for _ in range(20 if gets_up else 5):
        if gets_up:
            run(session)
        clock.wait(RESTART_WINDOW_S / 3)
        die(session)
    if not gets_up:
        with pytest.raises(WorkerFailed, match="died 6 times"):
            die(session)


@pytest.mark.parametrize("phase", [Phase.EVALUATE, Phase.SAMPLE])
def test_a_worker_that_evaluates_or_samples_keeps_no_checkpoint_waiting(session, phase):
    run(session, Phase.WAITING)
    busy, _ = session.seats
    for own, still in ((Phase.COMPUTE, False), (Phase.DATA, False), (phase, True)):
        session.entry(busy).beat(own)
        assert session.holding_still() == still
    assert session.has_side_job()


def live(session):
    """The number of workers on which step sizes and predictions depend."""
    return session.arena.counters.load("workers")


def joined(session):
    """The slot of a worker that has joined two others; it is up."""
    slot = session.free_slots()[0]
    session.join(slot, WorkerSpec("mlx:cpu", 1), "native")
    assert live(session) == 2  # it has a framework to load first
    run(session)
    session.poll()
    assert live(session) == 3
    assert session.messages.pop() == f"worker {slot} (mlx:cpu) has joined"
    return slot


def test_a_joined_worker_counts_until_it_has_left(session):
    assert (joined(session), session.free_slots()) == (3, [4])
    session.leave(3)
    session.poll()
    assert live(session) == 3  # its step is under way
    die(session, 3)
    assert (live(session), session.restarts, session.removed) == (2, 0, 1)
    assert session.arena.workers.entry(3).state == State.FREE
    assert session.free_slots() == [4, 3]  # the unused one comes first
    assert joined(session) == 4


def test_a_worker_that_leaves_and_does_not_go_is_killed(session, clock):
    slot = joined(session)
    session.leave(slot)
    for _ in range(round(LEAVE_S) + 2):
        assert session.entry(session.seats[-1]).state in (State.LEAVING, State.RUNNING)
        clock.wait(1.0)
        session.poll()
    assert slot not in session.pool
    assert session.messages == [f"worker {slot} (mlx:cpu) has left after 0 steps"]


def test_a_worker_that_joins_and_fails_is_given_up_and_the_run_continues(session):
    session.join(3, WorkerSpec("mlx:gpu", 1), "metal")
    session.pool[3].process.exitcode = 3  # the environment lacks something
    session.poll()
    assert "cannot start" in session.messages[0]
    assert "the run continues without it" in session.messages[0]
    assert [seat.slot for seat in session.seats] == [1, 2]
    slot = joined(session)
    session.messages.clear()
    for _ in range(6):
        run(session)
        die(session, slot)
    assert "died 6 times" in session.messages[-1]
    assert (live(session), len(session.seats)) == (2, 2)
