"""Lock-free workers take exactly the tickets of the budget, whichever worker dies."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog._native import STRIPE
from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger, Position
from mlxhog.config.budget import Budget
from mlxhog.optim import SGD, AdamW, Muon, Target
from mlxhog.strategies import Idle, Lease, look_ahead
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from tests.strategies.deaths import die_and_be_replaced, lines
from tests.strategies.test_sync import LR, context, strategy

STEPS = 5
HOGWILD = strategy(Hogwild)
METHODS = ("claim", "_all_are_handed_out", "read", "write", "corrected", "_step", "_add")


def new_arena(steps=STEPS, position=None):
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    arena = Arena.create(plan({"w": parameter}, max_workers=2, n_tickets=8))
    ledger = Ledger(arena)
    if position is not None:
        ledger.restore(position)
    HOGWILD.limit_steps(arena, ledger, steps)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, slot):
    ctx = context(arena, slot, HOGWILD)
    ctx.step_limit, ctx.budget = STEPS, Budget(steps=STEPS)
    ctx.ledger = Ledger(arena)
    return HogwildWorker(ctx)


def take_steps(worker, gradient=1.0):
    """Steps until none is left; the numbers of their tickets."""
    tickets = []
    while isinstance(lease := worker.claim(), Lease):
        worker.read()
        worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)
        tickets.append(lease.epoch * worker.context.ledger.n + lease.ticket)
    assert lease is Idle.DONE
    return tickets


@pytest.mark.slow
def test_a_death_at_any_line_of_a_step_costs_the_budget_none_and_adds_none():
    unreached = []
    for method, number in lines(HogwildWorker, METHODS):
        with new_arena() as arena:
            make = partial(worker, arena, 1)
            died = die_and_be_replaced(make(), (method, number), make, take_steps)
            ledger = Ledger(arena)
            assert HOGWILD.steps_done(arena, ledger) == STEPS, f"{method}+{number}"
            assert ledger.watermark == STEPS
            assert ledger.position()["torn"] <= 1
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(HogwildWorker, METHODS))) - len(unreached)
    assert reached >= 25, unreached


def test_a_death_at_any_line_loses_no_moment_of_a_step_that_was_counted():
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

            def make(arena=arena):
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


DEFAULT = strategy(Hogwild, prediction="last")
MUON = Muon(
    hidden=frozenset({"a", "b"}), beta1=0.5, beta2=0.5, nesterov=0.0, weight_decay=0.0, shared=True
)
SHAPES = {"a": (30, 90), "b": (40, 30), "c": (7,)}
ZEROS = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
BEGIN = 2.0**STEPS


def muon_arena():
    """An arena for Muon with shared moments and looking ahead, the defaults of a run.

    Gradients are 0 and betas 1/2: a step halves the moments, and moves a matrix by one direction.
    """
    parameters = {
        name: SimpleNamespace(shape=shape, init="zeros", kind="dense")
        for name, shape in SHAPES.items()
    }
    extra = DEFAULT.segments(len(SHAPES))
    layout = plan(parameters, max_workers=2, shared=MUON.shared_segments, n_tickets=8, extra=extra)
    arena = Arena.create(layout)
    DEFAULT.limit_steps(arena, Ledger(arena), STEPS)
    arena.counters.store("command", Command.TRAIN)
    for name in MUON.shared_segments:
        arena.segment(name)[:] = BEGIN
    return arena


def muon_worker(arena, slot):
    ctx = context(arena, slot, DEFAULT)
    ctx.step_limit, ctx.budget, ctx.optimizer = STEPS, Budget(steps=STEPS), MUON
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    return HogwildWorker(ctx)


def take_rest(worker):
    """Steps of zero gradients until none is left."""
    while isinstance(lease := worker.claim(), Lease):
        worker.read()
        worker.write(ZEROS, lease, samples=1)


def steps_in(arena, segment, name):
    """The numbers of steps that the elements of a parameter's moments have seen."""
    slot = arena.layout.slots[name]
    values = arena.segment(segment)[slot.offset : slot.offset + slot.size]
    return set(np.log2(BEGIN / values.astype(np.float64)).tolist())


@pytest.mark.slow
def test_a_death_at_any_line_of_muon_loses_no_step_of_shared_moments_that_was_counted():
    places = [
        *((HogwildWorker, line) for line in lines(HogwildWorker, METHODS)),
        *((Muon, line) for line in lines(Muon, ("update", "_directions"))),
        *((AdamW, line) for line in lines(AdamW, ("update",))),
        *((SGD, line) for line in lines(SGD, ("update",))),
        *((Target, line) for line in lines(Target, ("apply",))),
    ]
    reached, between = 0, 0
    for of, line in places:
        with muon_arena() as arena:
            victim, survivor = muon_worker(arena, 1), muon_worker(arena, 2)
            lease = victim.claim()
            assert isinstance(lease, Lease)
            victim.read()
            victim.write(ZEROS, lease, samples=1)
            one_step = arena.params.copy()
            held = survivor.claim()
            assert isinstance(held, Lease)
            survivor.read()

            def others(arena=arena, survivor=survivor, held=held):
                survivor.write(ZEROS, held, samples=1)
                return muon_worker(arena, 1)

            if not die_and_be_replaced(victim, line, others, take_rest, of=of):
                continue
            reached += 1
            counted = arena.counters.load("version")
            assert HOGWILD.steps_done(arena, Ledger(arena)) == STEPS, line
            assert not arena.segment("locks").any()
            last, prev = (arena.segment(name) for name in look_ahead.SEGMENTS)
            for name in SHAPES:
                (moments,) = steps_in(arena, "m", name)
                assert moments in (counted, counted + 1), line
                slot = arena.layout.slots[name]
                at = slice(slot.offset, slot.offset + slot.size)
                if name not in MUON.hidden:
                    assert steps_in(arena, "v", name) == {moments}
                    continue
                moved = arena.params[at] / one_step[at]
                written = round(float(moved.mean()))
                np.testing.assert_allclose(moved, written, rtol=1e-6)
                assert counted <= written <= moments, line
                between += written < moments
                np.testing.assert_array_equal(last[at], one_step[at])
                np.testing.assert_array_equal(prev[at], one_step[at])
    assert reached >= 60, reached
    assert between > 0, "no death came between the moments of a matrix and its step"


@pytest.mark.parametrize("part", ["moments", "step"])
def test_a_stripe_that_a_dead_worker_holds_half_written_is_taken_over(part):
    with muon_arena() as arena:
        words = range(arena.layout.slots["a"].offset // STRIPE, arena.segment("locks").size)
    for word in words:
        with muon_arena() as arena:
            victim, survivor = muon_worker(arena, 1), muon_worker(arena, 2)
            held, torn = survivor.claim(), victim.claim()
            assert isinstance(held, Lease)
            assert isinstance(torn, Lease)
            survivor.read()
            victim.context.ledger.begin_apply(torn.epoch, torn.ticket, victim.context.owner)
            arena.segment("locks")[word] = arena.locks(1).word
            half = slice(STRIPE * word, STRIPE * word + STRIPE // 2)
            if part == "moments":
                arena.segment("m")[half] /= 2
            else:
                arena.segment("m")[:] /= 2
                for name in ("ahead.last", "ahead.prev"):
                    arena.segment(name)[half] = LR
            arena.workers.mark_dead(1)
            victim.context.ledger.reap(victim.context.owner)
            survivor.write(ZEROS, held, samples=1)
            take_rest(muon_worker(arena, 1))
            counted = arena.counters.load("version")
            assert counted == STEPS - 1
            assert not arena.segment("locks").any(), word
            for name in SHAPES:
                assert steps_in(arena, "m", name) <= {counted, counted + 1}
            assert np.isfinite(arena.params).all()


def test_a_ticket_that_comes_back_at_the_end_is_taken_by_a_worker_that_had_none_left():
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
def test_a_resumed_budget_passes_over_tickets_that_are_done(steps, expected):
    position = Position(epoch=1, watermark=2, done=[3, 6], torn=0, n=8)
    with new_arena(steps, position) as arena:
        one = worker(arena, 1)
        assert take_steps(one) == expected
        assert HOGWILD.steps_done(arena, one.context.ledger) == steps


def test_an_outcome_counts_the_updates_that_landed_since_the_read():
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
def test_a_gradient_that_is_not_finite_is_dropped_and_counts_no_update(value):
    with new_arena() as arena:
        one = worker(arena, 1)
        outcome = take_step(one, value)
        assert not outcome.applied
        assert arena.param("w").tolist() == [0.0] * 4
        assert (arena.counters.load("version"), one.context.entry.opt_step) == (0, 0)
        assert take_step(one, 1.0).applied
        assert (arena.counters.load("version"), one.context.entry.opt_step) == (1, 1)


def take_step(worker, gradient):
    lease = worker.claim()
    assert isinstance(lease, Lease)
    worker.read()
    return worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def test_without_a_budget_of_steps_tickets_never_end():
    with new_arena(None) as arena:
        one = worker(arena, 1)
        for _ in range(3 * one.context.ledger.n):
            lease = one.claim()
            assert isinstance(lease, Lease)
            one.write({"w": np.ones(4, np.float32)}, lease, samples=1)
        assert HOGWILD.steps_done(arena, one.context.ledger) == 3 * one.context.ledger.n
