"""A worker that reads for its next gradient before it adds the last one's step."""

from types import SimpleNamespace

import numpy as np

from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.config.budget import Budget
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.delays import Delays
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker, OverlappedWorker
from mlxhog.strategies.look_ahead import LastSteps, OwnMovement, reader
from tests.strategies import test_hogwild_claims, test_look_ahead
from tests.strategies.deaths import die_and_be_replaced, lines
from tests.strategies.test_hogwild_claims import STEPS, new_arena
from tests.strategies.test_look_ahead import last_steps, read
from tests.strategies.test_sync import LR, context, facts, strategy

OVERLAPPED = strategy(Hogwild, overlap=True)
ONES = {"w": np.ones(4, np.float32)}
arena = test_look_ahead.arena  # the fixture


def worker(arena, slot):
    ctx = context(arena, slot, OVERLAPPED)
    ctx.step_limit, ctx.budget = STEPS, Budget(steps=STEPS)
    ctx.ledger = Ledger(arena)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    made = OVERLAPPED.worker(ctx)
    assert isinstance(made, OverlappedWorker)
    return made


def take_steps(worker):
    """Steps until no ticket is left: the parameter of each gradient, and the outcome."""
    seen = []
    outcomes = []
    waiting = None
    while isinstance(lease := worker.claim(), Lease):
        worker.read()
        seen.append(float(worker.context.backend.inbox[0]))
        if waiting is not None:
            outcomes.append(worker.write(ONES, waiting, samples=1))
            assert worker.context.entry.ticket == lease.ticket
        waiting = lease
    assert lease is Idle.DONE
    if waiting is not None:
        outcomes.append(worker.write(ONES, waiting, samples=1))
    return list(zip(seen, outcomes, strict=True))


def test_a_death_at_any_line_costs_the_budget_none_and_adds_none():
    """The worker holds two tickets; of the two only the one that was being added may be torn."""
    places = [
        *((HogwildWorker, line) for line in lines(HogwildWorker, test_hogwild_claims.METHODS)),
        *((OverlappedWorker, line) for line in lines(OverlappedWorker, ("read", "write"))),
    ]
    reached, two_came_back = 0, 0
    for of, line in places:
        with new_arena() as arena:

            def make(arena=arena):
                nonlocal two_came_back
                states = [Ledger(arena).state(0, ticket) for ticket in range(STEPS)]
                two_came_back += states.count(TicketState.RETURNED) == 2
                return worker(arena, 1)

            victim = worker(arena, 1)
            if not die_and_be_replaced(victim, line, make, take_steps, of=of):
                continue
            reached += 1
            ledger, counted = Ledger(arena), arena.counters.load("version")
            assert OVERLAPPED.steps_done(arena, ledger) == STEPS, line
            assert ledger.watermark == STEPS
            torn = ledger.position()["torn"]
            assert torn <= 1
            (moved,) = set((arena.param("w") / -LR).tolist())
            assert moved in {counted, counted + torn}, line
            assert moved >= STEPS - torn, "a step is lost that the ledger counts as added"
    assert reached >= 25, reached
    assert two_came_back > 0, "no death found a worker with two tickets"


def test_a_gradient_of_one_worker_is_exactly_one_update_late_and_the_staleness_says_so():
    with new_arena() as arena:
        steps = take_steps(worker(arena, 1))
        assert [seen / -LR for seen, _ in steps] == [0, 0, 1, 2, 3]
        assert [outcome.staleness for _, outcome in steps] == [0, 1, 1, 1, 1]
        assert [outcome.version for _, outcome in steps] == [1, 2, 3, 4, 5]


def test_steps_of_others_are_counted_beside_its_own():
    with new_arena() as arena:
        slow, other = worker(arena, 1), worker(arena, 2)
        first = slow.claim()
        slow.read()
        second = slow.claim()
        slow.read()
        taken = other.claim()
        other.read()
        assert isinstance(first, Lease)
        assert isinstance(second, Lease)
        assert isinstance(taken, Lease)
        other.write(ONES, taken, samples=1)
        assert slow.write(ONES, first, samples=1).staleness == 1
        assert slow.write(ONES, second, samples=1).staleness == 2


def test_looking_ahead_expects_the_workers_own_step_too(arena):
    ahead = reader(arena, facts(prediction="last", overlap=True), 3)
    assert isinstance(ahead, LastSteps)
    last_steps(arena, 0.5, 0.5)
    assert read(ahead, arena) == 3 * 0.5
    own = reader(arena, facts(prediction="own", overlap=True), 3)
    assert isinstance(own, OwnMovement)
    arena.param("w")[...] = 2.0
    assert read(own, arena) == 2.0 + 2.0  # 3/3 of the movement
    assert own.horizon(3) == 3.0


def test_a_gradient_is_late_only_beyond_the_workers_own_step(arena):
    of = strategy(Hogwild, overlap=True, staleness_lr="delay_adaptive")
    delays = Delays(context(arena, 1, of))
    assert [delays.rate(1.0, staleness) for staleness in (0, 2, 4)] == [1.0, 1.0, 0.5]
