"""A worker dies at every line of a synchronous round, and its successor finishes the round."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.workers import Phase
from mlxhog.data.ledger import Ledger
from mlxhog.strategies import Lease
from mlxhog.strategies.sync import SyncWorker, sync_segments
from tests.strategies.deaths import die_and_be_replaced, lines
from tests.strategies.test_sync import LR, context

pytestmark = pytest.mark.slow

GRADIENTS = (1.0, 3.0)
ROUNDS = 2
METHODS = ("claim", "_decision", "read", "write", "_write_own", "_average", "_apply")


def new_arena() -> Arena:
    """An arena with a parameter for each of two ranks to average and apply."""
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    params = {"a": parameter, "b": parameter}
    arena = Arena.create(plan(params, max_workers=2, n_tickets=8, extra=sync_segments(2, 2)))
    arena.counters.store("command", Command.TRAIN)
    return arena


def take_rounds(worker: SyncWorker, rounds: int) -> None:
    """Rounds until `rounds` are finished by this worker's rank, also by its predecessor."""
    gradient = np.full(4, GRADIENTS[worker.context.rank], np.float32)
    while worker._stages(worker.context.rank) < 3 * rounds:
        lease = worker.claim()
        if isinstance(lease, Lease):
            worker.context.entry.phase = Phase.COMPUTE
            worker.read()
            worker.write({"a": gradient, "b": gradient}, lease, samples=1)


def new_worker(arena: Arena, slot: int) -> SyncWorker:
    return SyncWorker(context(arena, slot))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_at_any_line_of_a_round_costs_at_most_one_torn_apply(rank: int) -> None:
    unreached = []
    for method, number in lines(SyncWorker, METHODS):
        with new_arena() as arena:
            make = partial(new_worker, arena, rank + 1)
            victim, other = make(), new_worker(arena, 2 - rank)
            thread = threading.Thread(target=take_rounds, args=(other, ROUNDS), daemon=True)
            thread.start()
            run = partial(take_rounds, rounds=ROUNDS)
            died = die_and_be_replaced(victim, (method, number), make, run)
            thread.join(30)
            assert not thread.is_alive(), f"nobody went on after a death at {method}+{number}"
            check(arena, rank, f"{method}+{number}")
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(SyncWorker, METHODS))) - len(unreached)
    assert reached >= 40, unreached


def check(arena: Arena, rank: int, where: str) -> None:
    """Counts are exact; so are parameters, but for the share of a torn apply."""
    assert arena.counters.load("version") == ROUNDS, where
    assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [ROUNDS, ROUNDS], where
    torn = Ledger(arena).position()["torn"]
    mean = sum(GRADIENTS) / 2
    whole = [-LR * mean * ROUNDS] * 4
    half = [-LR * mean * (ROUNDS - 1)] * 4
    mine, theirs = ("a", "b") if rank == 0 else ("b", "a")
    assert arena.param(theirs).tolist() == whole, where
    assert arena.param(mine).tolist() in ([whole, half] if torn else [whole]), where
    assert torn <= 1, where
