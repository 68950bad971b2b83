"""A worker dies at every line of a synchronous round, and its successor finishes the round."""

import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Phase
from mlxhog.strategies import Lease
from mlxhog.strategies.sync import Sync, SyncWorker, sync_segments
from tests.strategies.deaths import die_and_be_replaced, let_others_run, lines
from tests.strategies.test_sync import LR, by_speed, context, note_speeds, strategy

GRADIENTS = (1.0, 3.0)
ROUNDS = 2
METHODS = ("claim", "_decision", "_publish", "read", "write", "_write_own", "_average", "_apply")
SHARES = ("counts", "publish", "parts", "note")
BY_SPEED = (*METHODS, *(f"division.SharesBySpeed.{name}" for name in SHARES))


def new_arena():
    """An arena with a parameter for each of two ranks to average and apply."""
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    params = {"a": parameter, "b": parameter}
    arena = Arena.create(plan(params, max_workers=2, n_tickets=8, extra=sync_segments(2, 2)))
    arena.counters.store("command", Command.TRAIN)
    return arena


def take_rounds(worker, rounds):
    """Rounds until `rounds` are finished by this worker's rank, also by its predecessor."""
    gradient = np.full(4, GRADIENTS[worker.context.rank], np.float32)
    while worker._stages(worker.context.rank) < 3 * rounds:
        lease = worker.claim()
        if isinstance(lease, Lease):
            worker.context.entry.phase = Phase.COMPUTE
            worker.read()
            worker.write({"a": gradient, "b": gradient}, lease, samples=1)
        else:
            let_others_run()


def new_worker(arena, slot):
    return SyncWorker(context(arena, slot))


def new_open_worker(arena, slot):
    """Of a run that may change its strategy: a round begins when both are there."""
    return SyncWorker(context(arena, slot, replace(strategy(Sync), open=True)))


def new_worker_by_speed(arena, slot):
    """Of a run in which rank 1 has been three times as slow as rank 0 so far."""
    note_speeds(arena, 1e-3, 2.9e-3)
    return by_speed(arena, slot)


def take_rounds_by_speed(worker, rounds):
    """The same, with the mean gradient of the sequences that were dealt to the rank."""
    while worker._stages(worker.context.rank) < 3 * rounds:
        lease = worker.claim()
        if isinstance(lease, Lease) and lease.parts is not None:
            worker.context.entry.phase = Phase.COMPUTE
            worker.read()
            ranks = [GRADIENTS[p.ticket % 2] for p in lease.parts for _ in range(p.begin, p.end)]
            gradient = np.full(4, np.mean(ranks or [0.0]), np.float32)
            grads = {"a": gradient, "b": gradient} if ranks else {}
            worker.write(grads, lease, samples=len(ranks))
        else:
            let_others_run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "new_worker", "take_rounds", "rtol"),
    [
        (METHODS, new_worker, take_rounds, 0.0),
        (BY_SPEED, new_worker_by_speed, take_rounds_by_speed, 1e-6),
        ((*METHODS, "_all_are_there"), new_open_worker, take_rounds, 0.0),
    ],
    ids=["equal", "speed", "open"],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_at_any_line_of_a_round_costs_at_most_one_torn_apply(
    rank, methods, new_worker, take_rounds, rtol
):
    unreached = []
    for method, number in lines(SyncWorker, methods):
        with new_arena() as arena:
            make = partial(new_worker, arena, rank + 1)
            victim, other = make(), new_worker(arena, 2 - rank)
            thread = threading.Thread(target=take_rounds, args=(other, ROUNDS), daemon=True)
            thread.start()
            run = partial(take_rounds, rounds=ROUNDS)
            died = die_and_be_replaced(victim, (method, number), make, run)
            thread.join(30)
            assert not thread.is_alive(), f"the other worker is stuck after {method}+{number}"
            check(arena, rank, f"{method}+{number}", rtol)
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(SyncWorker, methods))) - len(unreached)
    assert reached >= 40, unreached


def check(arena, rank, where, rtol):
    """Counts are exact; so are parameters, but for rounding and the share of a torn apply."""
    assert arena.counters.load("version") == ROUNDS, where
    assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [ROUNDS, ROUNDS], where
    torn = Ledger(arena).position()["torn"]
    mean = sum(GRADIENTS) / 2
    whole = [-LR * mean * ROUNDS] * 4
    half = [-LR * mean * (ROUNDS - 1)] * 4
    mine, theirs = ("a", "b") if rank == 0 else ("b", "a")
    assert np.allclose(arena.param(theirs), whole, rtol, atol=0), where
    possible = [whole, half] if torn else [whole]
    assert any(np.allclose(arena.param(mine), one, rtol, atol=0) for one in possible), where
    assert torn <= 1, where
