"""Simulated asynchrony, in one process."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Phase
from mlxhog.config import strategies as choices
from mlxhog.config.budget import Budget
from mlxhog.errors import ConfigError
from mlxhog.strategies import Idle, Lease, build
from mlxhog.strategies.sim import _STEP, Sim, SimWorker
from tests.strategies.deaths import die_and_be_replaced, lines
from tests.strategies.test_round_robin import expected
from tests.strategies.test_sync import LR, context, strategy

STEPS = 9
METHODS = ("claim", "read", "write", "_record", "_lr", "_apply")


def simulation(rule="fixed:1", **options):
    result = strategy(Sim, 1, seq_len=10, seed=0, sim_staleness=rule, **options)
    assert isinstance(result, Sim)
    return result


def new_arena(sim):
    """An arena whose one parameter begins at 1."""
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    layout = plan({"w": parameter}, max_workers=sim.slots, n_tickets=8, extra=sim.segments(1))
    arena = Arena.create(layout)
    arena.param("w")[...] = 1.0
    sim.begin(arena)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, sim, steps=STEPS):
    ctx = context(arena, 1, sim)
    ctx.step_limit, ctx.budget = steps, Budget(steps=steps)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    return SimWorker(ctx, sim)


def take_steps(worker):
    """All steps that are left, whose gradient is the parameter that was read; their staleness."""
    staleness = []
    while (lease := worker.claim()) is not Idle.DONE:
        if isinstance(lease, Lease):
            worker.context.entry.phase = Phase.COMPUTE
            worker.read()
            gradient = worker.context.backend.inbox[:4].copy()
            staleness.append(worker.write({"w": gradient}, lease, samples=1).staleness)
    return staleness


@pytest.mark.parametrize("age", [0, 1, 2])
def test_a_fixed_age_makes_the_steps_of_workers_that_apply_in_turn(age):
    sim = simulation(f"fixed:{age}")
    with new_arena(sim) as arena:
        assert take_steps(worker(arena, sim)) == [min(k, age) for k in range(STEPS)]
        assert arena.param("w").tolist() == [expected(STEPS, age + 1)] * 4
        opt_steps = [arena.workers.entry(slot).opt_step for slot in sim.state_slots(arena)]
        assert opt_steps == [len(range(k, STEPS, age + 1)) for k in range(age + 1)]
        assert sim.steps_done(arena, Ledger(arena)) == arena.counters.load("version") == STEPS


@pytest.mark.parametrize("rule", ["delay_adaptive", "drop"])
def test_rules_of_late_gradients_count_the_simulated_workers(rule):
    sim = simulation("fixed:3", staleness_lr=rule)  # four workers, whose usual age is three
    with new_arena(sim) as arena:
        take_steps(worker(arena, sim))
        assert arena.param("w").tolist() == [expected(STEPS, 4)] * 4  # as without a rule


def test_each_step_is_taken_at_the_age_that_its_rule_draws():
    sim = simulation("uniform:0:3")
    with new_arena(sim) as arena:
        ages = [sim.simulated(step).staleness for step in range(STEPS)]
        assert take_steps(worker(arena, sim)) == ages
        assert len(set(ages)) > 2
        history = [np.float32(1.0)]
        for step, age in enumerate(ages):
            history.append(np.float32(history[-1] - np.float32(LR) * history[step - age]))
        assert arena.param("w").tolist() == [history[-1]] * 4


def test_late_steps_of_a_simulation_obey_the_rules_for_late_gradients():
    sim = simulation("fixed:2", staleness_lr="drop:1")
    with new_arena(sim) as arena:
        take_steps(worker(arena, sim, steps=4))
        # versions stand still while steps are left out, so the third gradient is the last too late
        assert arena.counters.load("version") == 3
        assert sim.steps_done(arena, Ledger(arena)) == 4


def test_a_resumed_simulation_continues_with_the_copies_it_had():
    sim = simulation("speed:1,1,3")
    with new_arena(sim) as whole, new_arena(sim) as first, new_arena(sim) as second:
        take_steps(worker(whole, sim))
        take_steps(worker(first, sim, steps=5))
        for name in sim.kept_segments():
            second.segment(name)[...] = first.segment(name)
        second.param("w")[...] = first.param("w")
        second.counters.store("version", first.counters.load("version"))
        second.counters.store("first_ticket", 5)
        Ledger(second).restore(Ledger(first).position())
        sim.begin(second, sim.position(first))
        take_steps(worker(second, sim, steps=STEPS - 5))
        assert second.param("w").tolist() == whole.param("w").tolist()
        assert sim.position(second) == sim.position(whole)


def test_copies_of_another_rule_are_no_use_and_ages_begin_anew():
    old, sim = simulation("fixed:1"), simulation("fixed:2")
    with new_arena(old) as first, new_arena(sim) as second:
        take_steps(worker(first, old, steps=5))
        sim.begin(second, old.position(first))
        assert take_steps(worker(second, sim, steps=4)) == [0, 1, 2, 2]


def test_a_death_at_any_line_of_a_step_changes_nothing_but_a_torn_step():
    sim, unreached = simulation(), []
    for method, number in lines(SimWorker, METHODS):
        with new_arena(sim) as arena:
            make = partial(worker, arena, sim)
            died = die_and_be_replaced(make(), (method, number), make, take_steps)
            check(arena, sim, f"{method}+{number}")
        if not died:
            unreached.append((method, number))
    assert len(list(lines(SimWorker, METHODS))) - len(unreached) >= 45, unreached


def check(arena, sim, where):
    """Every count is exact; so are the parameters, unless a step was torn."""
    assert arena.counters.load("version") == STEPS, where
    assert sim.steps_done(arena, Ledger(arena)) == STEPS, where
    assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [5, 4], where
    position = Ledger(arena).position()
    assert position["torn"] <= 1, where
    lost = [None, *range(STEPS)] if position["torn"] else [None]
    assert arena.param("w").tolist() in [[expected(STEPS, 2, one)] * 4 for one in lost], where


def test_the_step_of_a_process_that_died_after_it_is_ended(monkeypatch):
    sim = simulation()
    with new_arena(sim) as arena:
        victim = worker(arena, sim)
        store = victim._words.store

        def die_before_the_step_is_counted(line, word, value):
            if (line, word) == (0, _STEP):
                raise KeyboardInterrupt
            store(line, word, value)

        monkeypatch.setattr(victim._words, "store", die_before_the_step_is_counted)
        with pytest.raises(KeyboardInterrupt):
            take_steps(victim)
        assert sim.steps_done(arena, Ledger(arena)) == 0
        sim.settle(arena, Ledger(arena))
        assert sim.steps_done(arena, Ledger(arena)) == arena.counters.load("version") == 1


def test_several_processes_are_refused():
    config = TrainConfig(strategy=choices.Sim())
    with pytest.raises(ConfigError, match="simulates its workers in one process"):
        build(config, 2)
