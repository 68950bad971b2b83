"""A synchronous round between two workers, in one process."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.data.ledger import Ledger
from mlxhog.optim import SGD
from mlxhog.strategies import Context, Idle, Lease, Strategy
from mlxhog.strategies.sync import Sync, SyncWorker, sync_segments

LR = 0.5


@pytest.fixture
def arena():
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    layout = plan({"w": parameter}, max_workers=2, n_tickets=8, extra=sync_segments(2, 1))
    with Arena.create(layout) as arena:
        arena.counters.store("command", Command.TRAIN)
        yield arena


def strategy(kind: type[Strategy], workers: int = 2, **options: object) -> Strategy:
    config: Any = SimpleNamespace(clip=0.0, read="live", **{"prediction": "none", **options})
    return kind(config, workers)


def context(arena: Arena, slot: int, of: Strategy | None = None) -> Context:
    entry = arena.workers.acquire_slot(slot=slot)
    backend: Any = SimpleNamespace(inbox=arena.params)  # it computes with the parameters themselves
    return Context(
        arena=arena,
        ledger=Ledger(arena),
        entry=entry,
        slot=slot,
        owner=entry.incarnation,
        strategy=of or strategy(Sync),
        backend=backend,
        optimizer=SGD(),
        metal=None,
        schedule=lambda progress, update: LR,
        budget=Budget(steps=10),
        step_limit=10,
        decay=frozenset(),
        model=SimpleNamespace(),  # type: ignore[arg-type]
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def step(worker: SyncWorker, gradient: float) -> None:
    """One worker's part of a round."""
    lease = worker.claim()
    assert isinstance(lease, Lease)
    worker.context.entry.phase = Phase.COMPUTE
    worker.read()
    worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def test_a_worker_that_waits_amid_a_round_does_not_count_as_holding_still(arena: Arena) -> None:
    first, second = SyncWorker(context(arena, 1)), SyncWorker(context(arena, 2))
    entry = first.context.entry
    thread = threading.Thread(target=step, args=(first, 1.0), daemon=True)
    thread.start()
    wait_until(lambda: first._stages(0) == 1)
    seen = entry.heartbeat_ns
    wait_until(lambda: entry.heartbeat_ns > seen)  # now it waits for the other worker
    assert entry.phase not in (Phase.IDLE, Phase.WAITING)
    step(second, 3.0)
    thread.join(30)
    assert arena.param("w").tolist() == [-LR * 2.0] * 4


@pytest.mark.parametrize("counted", [10, 20])
def test_the_step_size_of_a_round_does_not_depend_on_who_has_counted_the_last_one(
    arena: Arena, counted: int
) -> None:
    first = context(arena, 1)
    first.budget, first.step_limit = Budget(tokens=100), None
    first.schedule = lambda progress, update: 1.0 - progress
    first.entry.tokens = 10
    arena.counters.store("tokens", counted)  # with the other worker's 10, or not yet
    worker = SyncWorker(first)
    worker.claim()
    assert worker._lr() == 0.8


def test_a_round_that_was_done_is_not_done_again_because_a_death_left_it_uncounted(
    arena: Arena,
) -> None:
    first = context(arena, 1)
    first.step_limit = 1
    worker = SyncWorker(first)
    for stage in range(3):
        worker._finish_stage(stage)
    assert arena.counters.load("steps") == 0
    assert worker.claim() is Idle.DONE
