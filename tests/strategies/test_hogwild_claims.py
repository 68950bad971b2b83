"""A death while a worker claims a batch costs the budget no step, and never adds one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlxhog import supervisor as module
from mlxhog.arena import Arena, plan
from mlxhog.arena.workers import CLAIMED
from mlxhog.budget import Budget
from mlxhog.control import Command
from mlxhog.data.ledger import Ledger
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.hogwild import Hogwild
from tests.strategies.test_sync import context


class Died(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def arena() -> Any:
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    with Arena.create(plan({"w": parameter}, max_workers=2, n_tickets=8)) as arena:
        arena.counters.store("command", Command.TRAIN)
        yield arena


def worker(arena: Arena, slot: int, limit: int = 3) -> Hogwild:
    found = context(arena, slot)
    found.config.predict = "none"  # type: ignore[misc]
    found.step_limit, found.budget = limit, Budget(steps=limit)
    return Hogwild(found)


def reap(arena: Arena, dead: Hogwild) -> None:
    """What the supervisor does once the process has been waited for."""
    process: Any = SimpleNamespace(join=lambda: None, exitcode=-9, close=lambda: None)
    seat = module._Seat(slot=dead.context.slot, spec=None, process=process)  # type: ignore[arg-type]
    seat.owner = dead.context.owner
    run = SimpleNamespace(arena=arena, ledger=Ledger(arena), torn=0)
    run.entry = lambda seat: arena.workers.entry(seat.slot)
    module.Supervisor._reap(run, seat)  # type: ignore[arg-type]


@pytest.mark.parametrize("moment", ["before the lease", "after the lease"])
def test_a_worker_that_dies_claiming_gives_its_step_back(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    dead = worker(arena, 1)
    lease = dead.context.ledger.claim

    def die(owner: int) -> None:
        if moment == "after the lease":
            lease(owner)
        raise Died

    monkeypatch.setattr(dead.context.ledger, "claim", die)
    with pytest.raises(Died):
        dead.claim()
    assert dead.context.entry.ticket == CLAIMED
    assert arena.counters.load("claims") == 1
    reap(arena, dead)
    assert arena.counters.load("claims") == 0
    other = worker(arena, 2, limit=3)
    steps = [other.claim() for _ in range(4)]
    assert [isinstance(step, Lease) for step in steps] == [True, True, True, False]
    assert steps[-1] is Idle.DONE


def test_a_worker_that_dies_with_its_batch_gives_back_one_step_and_not_two(arena: Arena) -> None:
    dead = worker(arena, 1)
    assert isinstance(dead.claim(), Lease)
    reap(arena, dead)
    assert arena.counters.load("claims") == 0


def test_a_worker_that_dies_without_a_batch_gives_nothing_back(arena: Arena) -> None:
    other, dead = worker(arena, 1), worker(arena, 2)
    assert isinstance(other.claim(), Lease)
    reap(arena, dead)
    assert arena.counters.load("claims") == 1
