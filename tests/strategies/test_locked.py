"""Workers under one lock, or under the locks of the blocks they touch, in one process."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.config.budget import Budget
from mlxhog.optim.updates import STRIPE, Rows
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.aig import Aig, AigWorker, lock_words
from mlxhog.strategies.hogwild import HogwildWorker
from mlxhog.strategies.locked import LOCK, Locked, LockedWorker
from tests.strategies.deaths import dies_beside_another, lines
from tests.strategies.test_sync import LR, context, strategy, wait_until
from tests.threads import in_threads

STEPS = 6
KINDS = {"locked": Locked, "aig": Aig}


def layout(of):
    params = {
        "rows": SimpleNamespace(shape=(5, 2), init="zeros", kind="rows"),
        "w": SimpleNamespace(shape=(3 * STRIPE,), init="zeros", kind="dense"),
    }
    return plan(params, max_workers=2, n_tickets=8, extra=of.segments(2))


@pytest.fixture(params=list(KINDS))
def of(request):
    return strategy(KINDS[request.param])


def new_arena(of):
    arena = Arena.create(layout(of))
    of.limit_steps(arena, Ledger(arena), STEPS)
    arena.counters.store("command", Command.TRAIN)
    return arena


@pytest.fixture
def arena(of):
    with new_arena(of) as arena:
        yield arena


def worker(arena, slot, of):
    ctx = context(arena, slot, of)
    ctx.budget = Budget(steps=STEPS)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    new_worker = of.worker(ctx)
    assert isinstance(new_worker, HogwildWorker)
    return new_worker


GRADIENT = {
    "rows": Rows(np.array([3, 1], np.int32), np.ones((2, 2), np.float32)),
    "w": np.ones(3 * STRIPE, np.float32),
}


def take_steps(worker):
    while isinstance(lease := worker.claim(), Lease) or lease is Idle.WAIT:
        if isinstance(lease, Lease):
            worker.read()
            worker.write(GRADIENT, lease, samples=1)


def held(arena):
    """Lock words that are held."""
    own = arena.segment(LOCK) if LOCK in arena.layout.segments else arena.segment("locks")[:0]
    return int(np.count_nonzero(arena.segment("locks"))) + int(np.count_nonzero(own))


def take_each_lock(worker):
    """Take the lock that a worker left when it died in the last step of all."""
    if isinstance(worker, LockedWorker):
        worker._lock.acquire()
        worker._lock.release()
    locks = worker.context.arena.locks(worker.context.slot)
    for word in np.flatnonzero(worker.context.arena.segment("locks")).tolist():
        locks.acquire(word)
        locks.release(word)


def test_two_workers_lose_nothing_and_leave_no_lock(arena, of):
    in_threads(take_steps, [worker(arena, slot, of) for slot in (1, 2)])
    assert arena.counters.load("version") == STEPS
    assert np.all(arena.param("w") == -LR * STEPS)
    assert arena.param("rows")[:, 0].tolist() == [0, -LR * STEPS, 0, -LR * STEPS, 0]
    assert held(arena) == 0


def test_another_waits_until_the_step_is_over(arena, of):
    first, second = worker(arena, 1, of), worker(arena, 2, of)
    locks = arena.locks(1)
    if isinstance(first, LockedWorker):
        first._lock.acquire()
    else:
        locks.acquire(lock_words(arena.layout.slots["w"], GRADIENT["w"])[-1])
    began = second.context.entry.heartbeat_ns
    thread = threading.Thread(target=take_steps, args=(second,), daemon=True)
    thread.start()
    wait_until(lambda: second.context.entry.heartbeat_ns > began)  # it beats while it waits
    assert not arena.param("w").any()
    if isinstance(first, LockedWorker):
        first._lock.release()
    else:
        locks.release(lock_words(arena.layout.slots["w"], GRADIENT["w"])[-1])
    thread.join(30)
    assert second.context.entry.wait_ns > 0
    assert np.all(arena.param("w") == -LR * STEPS)


def test_a_whole_step_under_the_lock_is_never_late():
    of = strategy(Locked)
    with new_arena(of) as arena:
        one, other = worker(arena, 1, of), worker(arena, 2, of)
        lease = one.claim()
        assert isinstance(lease, Lease)
        one.read()
        thread = threading.Thread(target=take_steps, args=(other,), daemon=True)
        thread.start()
        wait_until(lambda: other.context.entry.ticket == 1)  # it stands before its read
        outcome = one.write(GRADIENT, lease, samples=1)
        thread.join(30)
        assert outcome.staleness == 0
        assert other.context.entry.staleness_max == 0
        assert arena.counters.load("version") == STEPS


def test_locks_are_those_of_the_blocks_that_a_gradient_touches(of):
    slots = layout(of).slots
    rows, dense = slots["rows"], slots["w"]
    assert rows.row_word0 is not None
    of_rows = Rows(np.array([3, 1, 3], np.int32), np.ones((3, 2), np.float32))
    assert lock_words(rows, of_rows).tolist() == [rows.row_word0 + 1, rows.row_word0 + 3]
    every = lock_words(rows, np.ones((5, 2), np.float32))
    assert every.tolist() == list(range(rows.row_word0, rows.row_word0 + 5))
    first = dense.offset // STRIPE
    whole = lock_words(dense, np.ones(3 * STRIPE, np.float32)).tolist()
    assert whole == list(range(first, (dense.offset + dense.size - 1) // STRIPE + 1))


def test_steps_on_other_rows_do_not_wait_for_each_other():
    of = strategy(Aig)
    with new_arena(of) as arena:
        slot = arena.layout.slots["rows"]
        one = Rows(np.array([0], np.int32), np.ones((1, 2), np.float32))
        other = Rows(np.array([4], np.int32), np.ones((1, 2), np.float32))
        arena.locks(1).acquire(lock_words(slot, one)[0])
        free = worker(arena, 2, of)
        lease = free.claim()
        assert isinstance(lease, Lease)
        free.read()
        free.write({"rows": other}, lease, samples=1)
        assert arena.param("rows")[4].tolist() == [-LR, -LR]


def test_a_death_at_any_line_stops_no_other_worker_and_costs_one_torn_step(of):
    kind = AigWorker if isinstance(of, Aig) else LockedWorker
    methods = [name for name in ("read", "write", "_touched") if name in vars(kind)]
    reached = 0
    for method, number in lines(kind, methods):
        with new_arena(of) as arena:
            make = partial(worker, arena, of=of)
            died, other = dies_beside_another(make, (method, number), take_steps)
            reached, where = reached + died, f"{method}+{number}"
            ledger = Ledger(arena)
            assert of.steps_done(arena, ledger) == STEPS, where
            take_each_lock(other)
            assert held(arena) == 0, where
            lost = ledger.position()["torn"]
            assert lost <= 1, where
            whole = np.float32(-LR * STEPS)
            assert np.all((arena.param("w") == whole) | (arena.param("w") == whole + LR * lost))
    assert reached >= 3
