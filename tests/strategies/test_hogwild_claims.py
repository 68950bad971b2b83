"""Lock-free workers take the tickets of the budget, all of them and no more, whoever dies."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger, Position
from mlxhog.config.budget import Budget
from mlxhog.optim import AdamW
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.context import Outcome
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from tests.strategies.deaths import die_and_be_replaced, lines
from tests.strategies.test_sync import context, strategy

STEPS = 5
HOGWILD = strategy(Hogwild)
METHODS = ("claim", "_all_are_handed_out", "read", "write", "_own", "_step", "_add")


def new_arena(steps: int | None = STEPS, position: Position | None = None) -> Arena:
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    arena = Arena.create(plan({"w": parameter}, max_workers=2, n_tickets=8))
    ledger = Ledger(arena)
    if position is not None:
        ledger.restore(position)
    HOGWILD.limit_steps(arena, ledger, steps)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena: Arena, slot: int, on_torn: str = "count") -> HogwildWorker:
    ctx = context(arena, slot, HOGWILD)
    ctx.step_limit, ctx.budget = STEPS, Budget(steps=STEPS)
    ctx.ledger = Ledger(arena, on_torn=on_torn)
    return HogwildWorker(ctx)


def take_steps(worker: HogwildWorker, gradient: float = 1.0) -> list[int]:
    """Steps until none is left; the numbers of their tickets."""
    tickets = []
    while isinstance(lease := worker.claim(), Lease):
        worker.read()
        worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)
        tickets.append(lease.epoch * worker.context.ledger.n + lease.ticket)
    assert lease is Idle.DONE
    return tickets


@pytest.mark.parametrize("on_torn", ["count", "retry"])
def test_a_death_at_any_line_of_a_step_costs_the_budget_none_and_adds_none(on_torn: str) -> None:
    unreached = []
    for method, number in lines(HogwildWorker, METHODS):
        with new_arena() as arena:
            make = partial(worker, arena, 1, on_torn)
            died = die_and_be_replaced(make(), (method, number), make, take_steps, on_torn=on_torn)
            ledger = Ledger(arena)
            assert HOGWILD.steps_done(arena, ledger) == STEPS, f"{method}+{number}"
            assert ledger.watermark == STEPS
            assert ledger.position()["torn"] <= 1
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(HogwildWorker, METHODS))) - len(unreached)
    assert reached >= 25, unreached


def test_a_death_at_any_line_loses_no_moment_of_a_step_that_was_counted() -> None:
    """Gradients are 0 and both betas 1/2, so every step halves the moments of all workers."""
    optimizer, begin = AdamW(beta1=0.5, beta2=0.5, weight_decay=0.0, shared=True), 2.0**STEPS
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    layout = plan({"w": parameter}, max_workers=2, shared=("m", "v"), n_tickets=8)
    torn = 0
    for method, number in lines(HogwildWorker, METHODS):
        with Arena.create(layout) as arena:
            HOGWILD.limit_steps(arena, Ledger(arena), STEPS)
            arena.counters.store("command", Command.TRAIN)
            for name in ("m", "v"):
                arena.segment(name)[:4] = begin

            def make(arena: Arena = arena) -> HogwildWorker:
                found = worker(arena, 1)
                found.context.optimizer = optimizer
                found._follow(1)
                return found

            die_and_be_replaced(make(), (method, number), make, partial(take_steps, gradient=0.0))
            counted = arena.counters.load("version")
            seen = {begin / value for name in ("m", "v") for value in arena.segment(name)[:4]}
            assert seen <= {2.0**counted, 2.0 ** (counted + 1)}, f"{method}+{number}"
            assert len(seen) == 1
            torn += seen == {2.0 ** (counted + 1)}
    assert torn > 0, "no death came between a step and its count"


def test_a_ticket_that_comes_back_at_the_end_is_taken_by_those_who_had_none_left() -> None:
    with new_arena(steps=2) as arena:
        dead, other = worker(arena, 1), worker(arena, 2)
        assert isinstance(dead.claim(), Lease)
        assert take_steps(other) == [1]
        assert HOGWILD.steps_done(arena, other.context.ledger) == 1
        other.context.ledger.reap(dead.context.owner)
        assert take_steps(other) == [0]
        assert HOGWILD.steps_done(arena, other.context.ledger) == 2


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [10]), (2, [10, 12]), (3, [10, 12, 13]), (4, [10, 12, 13, 15])]
)
def test_a_resumed_budget_passes_over_tickets_that_are_done(
    steps: int, expected: list[int]
) -> None:
    position = Position(epoch=1, watermark=2, done=[3, 6], torn=0, n=8)
    with new_arena(steps, position) as arena:
        one = worker(arena, 1)
        assert take_steps(one) == expected
        assert HOGWILD.steps_done(arena, one.context.ledger) == steps


def test_an_outcome_counts_the_updates_that_landed_since_the_read() -> None:
    with new_arena() as arena:
        slow, other = worker(arena, 1), worker(arena, 2)
        take_step(other, 1.0)
        lease = slow.claim()
        assert isinstance(lease, Lease)
        slow.read()
        take_step(other, 1.0)
        take_step(other, 1.0)
        outcome = slow.write({"w": np.ones(4, np.float32)}, lease, samples=1)
        assert (outcome.staleness, outcome.version) == (2, 4)
        assert take_step(slow, 1.0).staleness == 0


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_is_dropped_and_counts_no_update(value: float) -> None:
    with new_arena() as arena:
        one = worker(arena, 1)
        outcome = take_step(one, value)
        assert not outcome.applied
        assert arena.param("w").tolist() == [0.0] * 4
        assert (arena.counters.load("version"), one.context.entry.opt_step) == (0, 0)
        assert take_step(one, 1.0).applied
        assert (arena.counters.load("version"), one.context.entry.opt_step) == (1, 1)


def take_step(worker: HogwildWorker, gradient: float) -> Outcome:
    lease = worker.claim()
    assert isinstance(lease, Lease)
    worker.read()
    return worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def test_without_a_budget_of_steps_tickets_never_end() -> None:
    with new_arena(None) as arena:
        one = worker(arena, 1)
        for _ in range(3 * one.context.ledger.n):
            lease = one.claim()
            assert isinstance(lease, Lease)
            one.write({"w": np.ones(4, np.float32)}, lease, samples=1)
        assert HOGWILD.steps_done(arena, one.context.ledger) == 3 * one.context.ledger.n
