"""The judgement of a run's workers: silent, at rest, or dead too often."""

import errno
from contextlib import ExitStack
from unittest import mock

import pytest

from mlxhog.arena.workers import WorkerPhase, WorkerState
from mlxhog.base import child_processes
from mlxhog.base.workers import WorkerSpec
from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor.handles import FIRST_STEP_S, RESTART_WINDOW_S
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.workers import LEAVE_S
from tests.training.small import small_config

TIMEOUT_S = 60.0
POLL_S = 0.05


def a_process(start=None, **_):
    process = mock.Mock(sentinel=0, pid=0, exitcode=None)
    process.start = start or process.start
    process.is_alive = lambda: process.exitcode is None
    process.kill = lambda: setattr(process, "exitcode", -9)
    return process


class Clock:
    def __init__(self, monkeypatch):
        self.ns = 10**12
        floor = "training.supervisor"
        modules = f"arena.process arena.workers arena.clock {floor}.workers {floor}.handles"
        for module in modules.split():
            monkeypatch.setattr(f"mlxhog.{module}.monotonic_ns", lambda: self.ns)

    def wait(self, seconds):
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Starts(list):
    """The errors with which the next processes do not start, the last first; None starts."""

    def __call__(self):
        if self and (error := self.pop()) is not None:
            raise error


@pytest.fixture
def session(clock, tmp_path, monkeypatch):
    """The session of two spawned workers, with slots for two others."""
    monkeypatch.setattr("mlxhog.training.supervisor.workers.MAX_NONFINITE", 3)
    starts = Starts()
    context = mock.Mock(Process=lambda **how: a_process(starts, **how))
    monkeypatch.setattr(child_processes, "get_context", lambda _: context)
    monkeypatch.setattr(child_processes.connection, "wait", lambda *_, timeout: clock.wait(POLL_S))
    plan = make_plan(
        small_config(tmp_path, workers="mlx:cpu*2", heartbeat_timeout=TIMEOUT_S, max_workers=4)
    )
    with ExitStack() as stack:
        messages = []
        session = Session(
            plan, tmp_path, stack=stack, report=messages.append, on_poll=lambda doing: None
        )
        session.messages, session.starts = messages, starts
        session.workers.spawn()
        yield session


def run(session, phase=WorkerPhase.COMPUTE):
    for handle in session.workers.handles:
        handle.entry.state = WorkerState.RUNNING
        handle.entry.beat(phase)
        handle.entry.steps = 1


def die(session, slot=1):
    session.workers.pool[slot].kill()
    session.poll()


def test_a_pause_of_the_whole_group_counts_for_no_heartbeat_timeout(session, clock):
    run(session)
    for _ in range(10):
        session.poll()
        clock.wait(10 * TIMEOUT_S)  # Ctrl-Z, or the lid of a laptop
    session.poll()
    assert session.workers.restarts == 0
    assert all(session.workers.pool[slot].is_alive() for slot in (1, 2))


def test_a_worker_without_a_heartbeat_while_it_is_watched_is_replaced(session):
    run(session)
    silent, other = session.workers.handles
    for part, restarts in ((0.9, 0), (0.2, 1)):
        for _ in range(round(part * TIMEOUT_S / POLL_S)):
            other.entry.beat()
            session.poll()
        assert session.workers.restarts == silent.entry.restarts == restarts
    assert "no heartbeat for 60 s" in session.messages[0]


def test_a_first_step_may_take_five_minutes_and_its_limit_is_named(session):
    run(session)
    slow, other = session.workers.handles
    slow.entry.steps = 0
    for limit_s, restarts in ((FIRST_STEP_S - 5, 0), (10, 1)):
        for _ in range(round(limit_s / POLL_S)):
            other.entry.beat()
            session.poll()
        assert session.workers.restarts == restarts
    killed, _ = session.messages
    assert "300 s in phase compute, before its first step" in killed
    assert "--heartbeat-timeout" in killed


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


@pytest.mark.parametrize("phase", [WorkerPhase.EVALUATE, WorkerPhase.SAMPLE])
def test_a_worker_that_evaluates_or_samples_keeps_no_checkpoint_waiting(session, phase):
    run(session, WorkerPhase.WAITING)
    busy, _ = session.workers.handles
    for own, still in ((WorkerPhase.COMPUTE, False), (WorkerPhase.DATA, False), (phase, True)):
        busy.entry.beat(own)
        assert session.is_quiesced() == still
    assert session.has_background_task()


def live(session):
    """The number of workers on which learning rates and predictions depend."""
    return session.arena.counters.load("workers")


def joined(session):
    """The slot of a worker that has joined two others; it is up."""
    slot = session.workers.free_slots()[0]
    session.workers.join([(slot, WorkerSpec("mlx:cpu", 1), "native")])
    assert live(session) == 2  # it has a framework to load first
    run(session)
    session.poll()
    assert live(session) == 3
    assert session.messages.pop() == f"worker {slot} (mlx:cpu) has joined"
    return slot


def test_a_joined_worker_counts_until_it_has_left(session):
    assert (joined(session), session.workers.free_slots()) == (3, [4])
    session.workers.leave(3)
    session.poll()
    assert live(session) == 3  # its step is under way
    die(session, 3)
    assert (live(session), session.workers.restarts, session.workers.removed) == (2, 0, 1)
    assert session.arena.workers.entry(3).state == WorkerState.FREE
    assert session.workers.free_slots() == [4, 3]  # the unused one comes first
    assert joined(session) == 4


def test_a_worker_that_leaves_and_does_not_go_is_killed(session, clock):
    slot = joined(session)
    session.workers.leave(slot)
    for _ in range(round(LEAVE_S) + 2):
        assert session.workers.handles[-1].entry.state in (WorkerState.LEAVING, WorkerState.RUNNING)
        clock.wait(1.0)
        session.poll()
    assert slot not in session.workers.pool
    assert session.messages == [f"worker {slot} (mlx:cpu) has left after 1 steps"]


def test_a_worker_that_joins_and_fails_is_evicted_and_the_run_continues(session):
    session.workers.join([(3, WorkerSpec("mlx:gpu", 1), "metal")])
    session.workers.pool[3].process.exitcode = 3  # the environment lacks something
    session.poll()
    assert "cannot start" in session.messages[0]
    assert "the run continues without it" in session.messages[0]
    assert [handle.slot for handle in session.workers.handles] == [1, 2]
    slot = joined(session)
    session.messages.clear()
    for _ in range(6):
        run(session)
        die(session, slot)
    assert "died 6 times" in session.messages[-1]
    assert (live(session), len(session.workers.handles)) == (2, 2)


LACKS = 3  # the exit code of a worker whose framework cannot be loaded
SHORT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE)


def wait(session, seconds):
    for _ in range(round(seconds / POLL_S)):
        for handle in session.workers.handles:
            handle.entry.beat()
        session.poll()


def end(session, slot, code):
    session.workers.pool[slot].process.exitcode = code
    session.poll()


def test_a_replacement_that_cannot_start_is_tried_again_after_growing_pauses(session):
    run(session)
    session.begin_training()
    end(session, 1, -9)
    for pause_s in (1, 2, 4, 8):
        end(session, 1, LACKS)
        why = "could not start (exit code 3; it left no message)"
        assert f"{why}; tried again in {pause_s} s" in session.messages[-1]
        wait(session, pause_s - 0.2)
        assert session.workers.pool.keys() == {2}
        assert session.workers.has_any()
        wait(session, 0.4)
        assert 1 in session.workers.pool
    with pytest.raises(WorkerFailed, match=r"died 6 times .*--restarts"):
        end(session, 1, LACKS)


def test_a_first_worker_that_cannot_start_ends_the_run_at_once(session):
    with pytest.raises(EnvironmentLacks, match="cannot start"):
        end(session, 1, LACKS)


@pytest.mark.parametrize("code", SHORT)
def test_a_replacement_waits_while_the_system_starts_no_process(session, code):
    run(session)
    session.begin_training()
    session.starts.append(OSError(code, "no"))
    end(session, 1, -9)
    assert "no process can be started" in session.messages[-1]
    assert (1 in session.workers.pool, session.is_quiesced(), session.is_drained()) == (False,) * 3
    wait(session, 1.2)
    assert 1 in session.workers.pool


@pytest.mark.parametrize("code", SHORT)
def test_workers_join_all_or_none(session, code):
    run(session)
    session.starts.extend([OSError(code, "no"), None])
    plan, spec = session.plan, WorkerSpec("mlx:cpu", 1)
    with pytest.raises(EnvironmentLacks, match="no process can be started"):
        session.workers.join([(3, spec, "native"), (4, spec, "native")])
    assert [handle.slot for handle in session.workers.handles] == [1, 2]
    assert (session.workers.pool.keys(), session.workers.plan) == ({1, 2}, plan)
    assert session.workers.free_slots() == [3, 4]  # slot 4 is not in the plan before slot 3


def test_the_end_reaps_all_workers_whatever_one_of_them_raises(session):
    run(session)
    reap = session.workers._reap

    def fails_for_the_first(handle, *how):
        reap(handle, *how)
        if handle.slot == 1:
            raise OSError(errno.ENOSPC, "full")

    session.workers._reap = fails_for_the_first
    with pytest.raises(OSError, match="full"):
        session.workers.stop(0.0)
    assert not session.workers.pool


def test_a_joined_worker_that_has_just_started_is_not_cancelled(session):
    session.workers.join([(slot, WorkerSpec("mlx:cpu", 1), "native") for slot in (3, 4)])
    session.workers.handles[2].entry.state = WorkerState.RUNNING  # since the last look
    session.workers.cancel_starting()
    assert [handle.slot for handle in session.workers.handles] == [1, 2, 3]


def test_only_workers_inside_a_step_are_cancelled_and_nobody_waits_for_them(session):
    run(session)
    session.workers.join([(slot, WorkerSpec("mlx:cpu", 1), "native") for slot in (3, 4)])
    late, idle, starting, _ = session.workers.handles
    idle.entry.beat(WorkerPhase.IDLE)
    run_again = session.workers.handles[3].entry
    run_again.state = WorkerState.RUNNING
    run_again.beat(WorkerPhase.IDLE)
    assert not session.is_drained()
    session.cancel_steps()
    assert session.workers.pool.keys() == {2, 3, 4}
    starting.entry.state = WorkerState.RUNNING
    starting.entry.beat(WorkerPhase.IDLE)
    assert session.is_drained()
    assert late.cancelled
    session.poll()
    assert session.workers.restarts == 0


def test_an_evaluator_may_have_the_slot_of_a_worker_that_was_to_leave(session):
    run(session)
    session.workers.leave(1)
    session.cancel_steps()
    assert not session.workers.has_any()
    assert session.workers.revive()
    wait(session, LEAVE_S + 2)
    assert 1 in session.workers.pool


def test_nobody_waits_for_a_dead_worker_to_end_its_step(session):
    run(session)
    session.workers.pool[1].process.exitcode = -9
    assert not session.only_dead_in_step()
    session.workers.handles[1].entry.beat(WorkerPhase.IDLE)
    assert session.only_dead_in_step()
    assert not session.is_drained()


def test_a_joined_worker_that_dies_often_and_cannot_start_is_removed_and_that_is_all(session):
    slot = joined(session)
    for _ in range(4):
        run(session)
        die(session, slot)
    run(session)
    session.starts.append(OSError(errno.EAGAIN, "no"))
    die(session, slot)
    assert "the run continues without it" in session.messages[-1]
    assert [handle.slot for handle in session.workers.handles] == [1, 2]


def test_a_worker_that_is_removed_amid_a_change_of_strategy_costs_no_other_its_job(session):
    session.workers.join([(slot, WorkerSpec("mlx:cpu", 1), "native") for slot in (3, 4)])
    first, second, dead, last = session.workers.handles
    first.parked = second.parked = last.parked = True
    session.workers._reap(dead)
    dead.deaths_s.extend([0.0] * 5)
    session.starts.append(OSError(errno.EAGAIN, "no"))
    session.workers.reassign()
    assert session.workers.handles == [first, second, last]
    assert not any(handle.parked for handle in session.workers.handles)
