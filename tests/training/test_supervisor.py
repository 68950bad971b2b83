"""The supervisor's judgement of workers: silent, at rest, or dead too often."""

from types import SimpleNamespace

import pytest

from mlxhog import TrainConfig
from mlxhog.arena import Arena, plan, process, worker_pool
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Phase, State
from mlxhog.base.workers import WorkerSpec
from mlxhog.errors import WorkerFailed
from mlxhog.strategies import build
from mlxhog.training.supervisor import LEAVE_S, RESTART_WINDOW_S, Supervisor

TIMEOUT_S = 60.0
POLL_S = 0.05


class Process:
    """A fake of a worker's process."""

    sentinel = pid = 0

    def __init__(self):
        self.exitcode = None

    def start(self):
        pass

    def is_alive(self):
        return self.exitcode is None

    def kill(self):
        self.exitcode = -9

    def join(self, timeout=None):
        pass

    def close(self):
        pass


class Clock:
    """A fake of the machine's clock."""

    def __init__(self, monkeypatch):
        self.ns = 10**12
        monkeypatch.setattr(process, "monotonic_ns", lambda: self.ns)
        monkeypatch.setattr("mlxhog.arena.workers.monotonic_ns", lambda: self.ns)
        monkeypatch.setattr("mlxhog.training.supervisor.monotonic_ns", lambda: self.ns)

    def wait(self, seconds):
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def supervisor(clock, tmp_path, monkeypatch):
    """The supervisor of two spawned workers."""
    parameter = SimpleNamespace(shape=(4,), kind="dense")
    config = TrainConfig(heartbeat_timeout_s=TIMEOUT_S, restarts=5, strategy="hogwild")
    monkeypatch.setattr("mlxhog.training.supervisor.MAX_NONFINITE", 3)
    context = SimpleNamespace(Process=lambda **_: Process())
    monkeypatch.setattr(worker_pool, "get_context", lambda _: context)
    monkeypatch.setattr(worker_pool.connection, "wait", lambda *_, timeout: clock.wait(POLL_S))

    def make_job(slot, halvings):
        return None

    with Arena.create(plan({"w": parameter}, max_workers=4, n_tickets=8)) as arena:
        specs = [WorkerSpec("torch:cpu", 1)] * 2
        strategy, ledger = build(config, 2), Ledger(arena)
        supervisor = Supervisor(arena, ledger, specs, strategy, config, tmp_path, make_job)
        supervisor.start()
        yield supervisor
        supervisor.kill()


def run(supervisor, phase=Phase.COMPUTE):
    """Let every worker be up."""
    for seat in supervisor.seats:
        supervisor.entry(seat).state = State.RUNNING
        supervisor.entry(seat).beat(phase)


def die(supervisor):
    """Let the first worker die, and the supervisor see it."""
    supervisor.pool[1].kill()
    supervisor.poll(POLL_S)


def test_a_pause_of_the_whole_group_is_no_silence_of_a_worker(supervisor, clock):
    run(supervisor)
    for _ in range(10):
        supervisor.poll(POLL_S)
        clock.wait(10 * TIMEOUT_S)  # Ctrl-Z, or the lid of a laptop
    supervisor.poll(POLL_S)
    assert supervisor.restarts == 0
    assert all(supervisor.pool[slot].is_alive() for slot in (1, 2))


def test_a_worker_that_is_silent_while_it_is_watched_is_replaced(supervisor):
    run(supervisor)
    silent, other = supervisor.seats
    for _ in range(round(0.9 * TIMEOUT_S / POLL_S)):
        supervisor.entry(other).beat()
        supervisor.poll(POLL_S)
    assert supervisor.restarts == 0
    for _ in range(round(0.2 * TIMEOUT_S / POLL_S)):
        supervisor.entry(other).beat()
        supervisor.poll(POLL_S)
    assert supervisor.restarts == 1
    assert supervisor.entry(silent).restarts == 1
    assert "no sign of life for 60 s" in supervisor.messages[0]


def test_a_worker_that_never_gets_up_is_given_up_however_long_each_start_takes(supervisor, clock):
    for _ in range(5):
        clock.wait(RESTART_WINDOW_S / 3)
        die(supervisor)
    with pytest.raises(WorkerFailed, match="died 6 times"):
        die(supervisor)


def test_deaths_of_a_worker_that_was_up_are_forgotten_in_time(supervisor, clock):
    for _ in range(20):
        run(supervisor)
        clock.wait(RESTART_WINDOW_S / 3)
        die(supervisor)
    assert supervisor.restarts == 20


@pytest.mark.parametrize("phase", [Phase.EVALUATE, Phase.SAMPLE])
def test_a_worker_that_evaluates_or_samples_keeps_no_checkpoint_waiting(supervisor, phase):
    run(supervisor, Phase.WAITING)
    busy, _ = supervisor.seats
    for own, still in ((Phase.COMPUTE, False), (Phase.DATA, False), (phase, True)):
        supervisor.entry(busy).beat(own)
        assert supervisor.holding_still() == still
    assert supervisor.has_side_job()


def live(supervisor):
    """The number of workers on which step sizes and predictions depend."""
    return supervisor.arena.counters.load("workers")


def joined(supervisor):
    """The slot of a worker that has joined two others; it is up."""
    slot = supervisor.free_slots()[0]
    supervisor.join(slot, WorkerSpec("mlx:cpu", 1))
    assert live(supervisor) == 2  # it has a framework to load first
    run(supervisor)
    supervisor.poll(POLL_S)
    assert live(supervisor) == 3
    assert supervisor.messages.pop() == f"worker {slot} (mlx:cpu) has joined"
    return slot


def test_a_joined_worker_counts_until_it_has_left(supervisor):
    assert (joined(supervisor), supervisor.free_slots()) == (3, [4])
    supervisor.leave(3)
    supervisor.poll(POLL_S)
    assert live(supervisor) == 3  # its step is under way
    supervisor.pool[3].kill()
    supervisor.poll(POLL_S)
    assert (live(supervisor), supervisor.restarts, supervisor.removed) == (2, 0, 1)
    assert supervisor.arena.workers.entry(3).state == State.FREE
    assert supervisor.free_slots() == [4, 3]  # the unused one comes first
    assert joined(supervisor) == 4


def test_a_worker_that_leaves_and_does_not_go_is_killed(supervisor, clock):
    slot = joined(supervisor)
    supervisor.leave(slot)
    for _ in range(round(LEAVE_S) + 2):
        assert supervisor.entry(supervisor.seats[-1]).state in (State.LEAVING, State.RUNNING)
        clock.wait(1.0)
        supervisor.poll(POLL_S)
    assert slot not in supervisor.pool
    assert supervisor.messages == [f"worker {slot} (mlx:cpu) has left after 0 steps"]


def test_a_worker_that_joins_and_fails_is_given_up_and_the_run_continues(supervisor):
    supervisor.join(3, WorkerSpec("mlx:gpu", 1))
    supervisor.pool[3].process.exitcode = 3  # the environment lacks something
    supervisor.poll(POLL_S)
    assert "cannot start" in supervisor.messages[0]
    assert "the run continues without it" in supervisor.messages[0]
    assert [seat.slot for seat in supervisor.seats] == [1, 2]
    slot = joined(supervisor)
    supervisor.messages.clear()
    for _ in range(6):
        run(supervisor)
        supervisor.pool[slot].kill()
        supervisor.poll(POLL_S)
    assert "died 6 times" in supervisor.messages[-1]
    assert (live(supervisor), len(supervisor.seats)) == (2, 2)
