"""A parameter server, with and without a gate, in one process."""

from __future__ import annotations

import random
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import State
from mlxhog.config.budget import Budget
from mlxhog.optim import AdamW
from mlxhog.strategies import Idle, Lease, ssp
from mlxhog.strategies.async_ps import AsyncPS, AsyncPSWorker
from mlxhog.strategies.ssp import SSP, SSPWorker, clocks_of
from tests.strategies.deaths import dies_beside_another, lines
from tests.strategies.test_sync import LR, context, strategy, wait_until

STEPS = 8


def server(slack=None, workers=2, **options):
    kind = AsyncPS if slack is None else SSP
    how = {"slack": slack, **options}
    return strategy(kind, workers, **how)


def new_arena(of, steps=STEPS, state=()):
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    extra = of.segments(1)
    layout = plan(
        {"w": parameter}, max_workers=of.workers, n_tickets=64, extra=extra, private=state
    )
    arena = Arena.create(layout)
    of.limit_steps(arena, Ledger(arena), steps)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, slot, of, steps=STEPS, **more):
    ctx = context(arena, slot, of)
    ctx.entry.state = State.RUNNING
    ctx.budget = Budget(steps=steps)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    for name, value in more.items():
        setattr(ctx, name, value)
    return of.worker(ctx)


def push(worker, lease, gradient=1.0):
    assert isinstance(lease, Lease)
    return worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def take_steps(worker):
    steps_done = worker.context.strategy.steps_done
    arena, ledger = worker.context.arena, worker.context.ledger
    while (lease := worker.claim()) is not Idle.DONE or steps_done(arena, ledger) < STEPS:
        if isinstance(lease, Lease):
            worker.read()
            push(worker, lease)


def test_staleness_is_the_updates_between_a_pull_and_its_push():
    of = server()
    with new_arena(of) as arena:
        one, other = worker(arena, 1, of), worker(arena, 2, of)
        mine, theirs = one.claim(), other.claim()
        one.read()
        other.read()
        assert push(other, theirs).staleness == 0
        assert one.context.entry.version_read == 0
        outcome = push(one, mine)
        assert (outcome.staleness, outcome.version) == (1, 2)
        assert arena.param("w").tolist() == [-2 * LR] * 4


def test_all_gradients_go_into_one_optimizer_state_in_the_order_of_their_arrival():
    of, rule = server(), AdamW(weight_decay=0.0)
    with new_arena(of, state=("m", "v")) as several, new_arena(of, state=("m", "v")) as alone:
        more = {"optimizer": rule}
        workers = [worker(several, slot, of, **more) for slot in (1, 2)]
        (one,) = [worker(alone, 1, of, **more)]
        for k in range(6):
            for worker_ in (workers[k % 2], one):
                lease = worker_.claim()
                worker_.read()
                push(worker_, lease, gradient=float(k - 2))
        assert np.array_equal(several.params[:4], alone.params[:4])
        assert several.workers.entry(1).opt_step == 6
        assert np.array_equal(several.segment("m.1"), alone.segment("m.1"))
        assert not several.segment("m.2").any()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_is_pushed_in_vain(value):
    of = server()
    with new_arena(of) as arena:
        one = worker(arena, 1, of)
        lease = one.claim()
        one.read()
        assert not push(one, lease, gradient=value).applied
        assert arena.counters.load("version") == arena.workers.entry(1).opt_step == 0
        assert of.steps_done(arena, Ledger(arena)) == 1


# -- the gate --------------------------------------------------------------------------------------


def iterate(worker):
    lease = worker.claim()
    worker.read()
    push(worker, lease)


def test_a_worker_begins_no_step_that_is_too_far_ahead_of_the_slowest():
    of = server(slack=2)
    with new_arena(of, steps=60) as arena:
        fast, slow = worker(arena, 1, of, 60), worker(arena, 2, of, 60)
        lease = slow.claim()
        slow.read()
        for _ in range(3):
            iterate(fast)
        assert clocks_of(arena) == {1: 3, 2: 0}
        thread = threading.Thread(target=iterate, args=(fast,), daemon=True)
        thread.start()
        wait_until(lambda: of.held_up(arena) is None and fast._words.load(0, 2) > 0)  # it waits
        assert clocks_of(arena)[1] == 3
        assert push(slow, lease).staleness == 3
        thread.join(30)
        assert clocks_of(arena) == {1: 4, 2: 1}


def test_no_worker_waits_for_a_dead_one_and_its_successor_is_not_behind_the_slowest():
    of = server(slack=0)
    with new_arena(of, steps=60) as arena:
        one, dead = worker(arena, 1, of, 60), worker(arena, 2, of, 60)
        dead.claim()
        iterate(one)
        arena.workers.mark_dead(2)
        Ledger(arena).reap(dead.context.owner)
        for _ in range(4):
            iterate(one)
        successor = worker(arena, 2, of, 60)
        assert clocks_of(arena) == {1: 5}  # it is starting
        iterate(successor)
        assert clocks_of(arena) == {1: 5, 2: 6}


@pytest.mark.parametrize("ends", ["finished", "done"])
def test_no_worker_waits_for_one_that_has_ended(ends):
    of = server(slack=0)
    with new_arena(of, steps=60) as arena:
        one, other = worker(arena, 1, of, 60), worker(arena, 2, of, 60)
        iterate(other)
        if ends == "finished":
            other.context.entry.state = State.FINISHED
        else:
            other.context.budget = Budget(tokens=0)
            assert other.claim() is Idle.DONE
        for _ in range(5):
            iterate(one)
        assert clocks_of(arena) == {1: 6}


@pytest.mark.parametrize(("counter", "idle"), [("command", Idle.DONE), ("pause", Idle.WAIT)])
def test_a_worker_at_the_gate_hears_the_supervisor(counter: str, idle: Idle) -> None:
    of = server(slack=0)
    with new_arena(of) as arena:
        one, other = worker(arena, 1, of), worker(arena, 2, of)
        other.claim()
        iterate(one)
        arena.counters.store(counter, Command.REST if counter == "command" else 1)
        assert one.claim() is idle


def test_a_worker_that_holds_up_the_others_for_long_is_named_once(monkeypatch):
    monkeypatch.setattr(ssp, "NOTICE_S", 1e-6)
    of = server(slack=0)
    with new_arena(of) as arena:
        one, slow = worker(arena, 1, of), worker(arena, 2, of)
        lease = slow.claim()
        slow.read()
        assert of.held_up(arena) is None
        iterate(one)
        thread = threading.Thread(target=one.claim, daemon=True)
        thread.start()
        wait_until(lambda: of.held_up(arena) is not None)
        warning = of.held_up(arena)
        assert warning is not None
        assert warning.startswith("worker 2 is slow: after 0 of its gradients others have waited")
        assert of.held_up(arena) == warning
        push(slow, lease)
        thread.join(30)
        assert of.held_up(arena) is None


@pytest.mark.parametrize("slack", [0, 1, 3])
def test_clocks_and_staleness_stay_within_their_bounds_at_any_speeds_and_deaths(slack):
    """Steps of four workers in a random order, as far as the gate lets them; some of them die."""
    workers, steps, rng = 4, 50, random.Random(slack)
    of, worst = server(slack=slack, workers=workers), 0
    with new_arena(of, steps=steps) as arena:
        team = {slot: worker(arena, slot, of, steps) for slot in range(1, workers + 1)}
        leases = {}
        for one in team.values():
            one._enter()
        while of.steps_done(arena, Ledger(arena)) < steps:
            slot = rng.choices(list(team), weights=(8, 4, 2, 1))[0]
            one = team[slot]
            if slot in leases and rng.random() < 0.05:
                arena.workers.mark_dead(slot)
                Ledger(arena).reap(one.context.owner)
                team[slot] = worker(arena, slot, of, steps)
                del leases[slot]
            elif slot in leases:
                worst = max(worst, push(one, leases.pop(slot)).staleness)
            elif not one._takes_part():
                one._enter()
            elif one._lead() <= slack:
                if isinstance(lease := one.claim(), Lease):
                    one.read()
                    leases[slot] = lease
            clocks = clocks_of(arena).values()
            assert not clocks or max(clocks) - min(clocks) <= slack + 1
        assert 0 < worst <= (workers - 1) * (2 * slack + 1)


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slack", "kind", "methods"),
    [
        (None, AsyncPSWorker, ("read", "write", "_step")),
        (1, AsyncPSWorker, ("write",)),
        (1, SSPWorker, ("claim", "_enter", "_wait_at_gate", "_landed")),
    ],
)
def test_a_death_at_any_line_stops_no_other_worker_and_costs_one_torn_step(slack, kind, methods):
    of, reached = server(slack=slack), 0
    for method, number in lines(kind, methods):
        with new_arena(of) as arena:
            make = partial(worker, arena, of=of)
            died, _ = dies_beside_another(make, (method, number), take_steps)
            reached, where = reached + died, f"{method}+{number}"
            ledger = Ledger(arena)
            torn = ledger.position()["torn"]
            assert of.steps_done(arena, ledger) == STEPS, where
            assert torn <= 1, where
            version = arena.counters.load("version")
            assert version == arena.workers.entry(1).opt_step or torn, where
            assert STEPS - torn <= version <= STEPS, where
            assert arena.param("w")[0] in [-LR * STEPS, -LR * (STEPS - torn)], where
            clocks = clocks_of(arena).values() if slack is not None else ()
            assert not clocks or max(clocks) - min(clocks) <= 2, where
    assert reached >= 3
