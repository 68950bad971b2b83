"""Turns of several workers, in one process."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.round_robin import _TURN, RoundRobin, RoundRobinWorker
from tests.strategies.deaths import die_and_be_replaced, let_others_run, lines
from tests.strategies.test_sync import LR, context, strategy
from tests.threads import begin, in_threads, join

TURNS = 9
METHODS = ("claim", "_open", "_take_in", "read", "write", "_record", "_lr", "_apply")


def turns(workers):
    return strategy(RoundRobin, workers, seq_len=10)


def new_arena(workers=3):
    """An arena whose one parameter begins at 1, before its workers start."""
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    extra = turns(workers).segments(1)
    layout = plan({"w": parameter}, max_workers=workers, n_tickets=8, extra=extra)
    arena = Arena.create(layout)
    arena.param("w")[...] = 1.0
    turns(workers).begin(arena)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, slot, *, workers=3, steps=TURNS):
    ctx = context(arena, slot, turns(workers))
    ctx.step_limit, ctx.budget = steps, Budget(steps=steps)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    return RoundRobinWorker(ctx)


def take_turns(worker):
    """Turns until none is left; the gradient is the parameter that was read, so staleness shows."""
    while (lease := worker.claim()) is not Idle.DONE:
        if isinstance(lease, Lease):
            worker.context.entry.phase = Phase.COMPUTE
            worker.read()
            gradient = worker.context.backend.inbox[:4].copy()
            outcome = worker.write({"w": gradient}, lease, samples=1)
            worker.context.entry.staleness_max = max(
                worker.context.entry.staleness_max, outcome.staleness
            )
        else:
            let_others_run()


def expected(turns, workers, without=None):
    """w[t+1] = w[t] - lr * w[t - (P - 1)], the first P gradients at w[0]; one step may be lost."""
    history = [np.float32(1.0)]
    for turn in range(turns):
        stale = history[max(0, turn - (workers - 1))]
        step = np.float32(0.0 if turn == without else LR) * stale
        history.append(np.float32(history[-1] - step))
    return history[-1]


def together(arena, slots, workers):
    return begin(take_turns, [worker(arena, slot, workers=workers) for slot in slots])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_gradient_is_applied_p_minus_1_updates_after_it_was_read(workers):
    with new_arena(workers) as arena:
        join(together(arena, list(range(1, workers + 1)), workers))
        assert arena.param("w").tolist() == [expected(TURNS, workers)] * 4
        staleness = [arena.workers.entry(k + 1).staleness_max for k in range(workers)]
        assert staleness == [workers - 1] * workers
        assert turns(workers).steps_done(arena, Ledger(arena)) == TURNS
        assert Ledger(arena).watermark == TURNS


def test_a_pause_lets_open_turns_run_out_and_changes_nothing():
    with new_arena(2) as arena:
        first, second = (worker(arena, slot, workers=2) for slot in (1, 2))
        leases = first.claim(), second.claim()
        arena.counters.store("pause", 1)
        for one, lease in zip((first, second), leases, strict=True):
            assert isinstance(lease, Lease)
            one.read()
            one.write({"w": one.context.backend.inbox[:4].copy()}, lease, samples=1)
        assert first.claim() is Idle.WAIT
        assert second.claim() is Idle.WAIT
        assert turns(2).steps_done(arena, Ledger(arena)) == arena.counters.load("version") == 2
        arena.counters.store("pause", 0)
        thread = threading.Thread(target=take_turns, args=(second,), daemon=True)
        thread.start()
        take_turns(first)
        thread.join(30)
        assert arena.param("w").tolist() == [expected(TURNS, 2)] * 4


def test_a_resumed_run_continues_with_the_copies_and_the_worker_whose_turn_it_is():
    with new_arena(2) as arena, new_arena(2) as resumed:
        join(together_for(arena, steps=5))
        for name in turns(2).kept_segments():
            resumed.segment(name)[...] = arena.segment(name)
        resumed.param("w")[...] = arena.param("w")
        resumed.counters.store("version", arena.counters.load("version"))
        resumed.counters.store("first_ticket", 5)
        Ledger(resumed).restore(Ledger(arena).position())
        turns(2).begin(resumed, turns(2).position(arena))
        join(together_for(resumed, steps=TURNS - 5))
        assert resumed.param("w").tolist() == [expected(TURNS, 2)] * 4
        assert resumed.workers.entry(2).staleness_max == 1


def test_the_turn_of_a_worker_that_died_after_its_step_is_ended(monkeypatch):
    with new_arena(2) as arena:
        victim = worker(arena, 1, workers=2)
        store = victim._words.store

        def die_before_the_turn_is_passed_on(line, word, value):
            if (line, word) == (0, _TURN):
                raise KeyboardInterrupt
            store(line, word, value)

        monkeypatch.setattr(victim._words, "store", die_before_the_turn_is_passed_on)
        with pytest.raises(KeyboardInterrupt):
            take_turns(victim)
        assert turns(2).steps_done(arena, Ledger(arena)) == 0
        turns(2).settle(arena, Ledger(arena))
        assert turns(2).steps_done(arena, Ledger(arena)) == 1
        assert turns(2).position(arena) == {"turn": 1, "versions": [1, 0]}
        assert arena.counters.load("version") == 1
        assert arena.param("w").tolist() == [expected(1, 2)] * 4


def together_for(arena, steps):
    workers = [worker(arena, slot, workers=2, steps=steps) for slot in (1, 2)]
    return begin(take_turns, workers)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_budget_of_fewer_steps_than_workers_is_kept(limit):
    with new_arena(3) as arena:
        workers = [worker(arena, slot, steps=limit) for slot in (1, 2, 3)]
        in_threads(take_turns, workers)
        assert arena.counters.load("version") == limit


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_at_any_line_of_a_turn_changes_nothing_but_a_torn_step(rank):
    unreached = []
    for method, number in lines(RoundRobinWorker, METHODS):
        with new_arena(2) as arena:
            make = partial(worker, arena, rank + 1, workers=2)
            victim = make()
            (thread,) = together(arena, [2 - rank], 2)
            died = die_and_be_replaced(victim, (method, number), make, take_turns)
            thread.join(30)
            assert not thread.is_alive(), f"the other worker is stuck after {method}+{number}"
            check(arena, f"{method}+{number}")
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(RoundRobinWorker, METHODS))) - len(unreached)
    assert reached >= 50, unreached


def check(arena, where):
    """Every count is exact; so are the parameters, unless a step was torn."""
    assert arena.counters.load("version") == TURNS, where
    assert turns(2).steps_done(arena, Ledger(arena)) == TURNS, where
    assert arena.workers.entry(1).opt_step == 5, where
    assert arena.workers.entry(2).opt_step == 4, where
    position = Ledger(arena).position()
    assert (position["epoch"] * position["n"] + position["watermark"], position["done"]) == (
        TURNS,
        [],
    ), where
    assert position["torn"] <= 1, where
    lost = [None, *range(TURNS)] if position["torn"] else [None]
    assert arena.param("w").tolist() in [[expected(TURNS, 2, one)] * 4 for one in lost], where
