"""Workers that take any ticket: budgets, staleness, locks, the server and its gate."""

import random
from functools import partial

import numpy as np
import pytest

import mlxhog.optim
from mlxhog._native import STRIPE
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import WorkerState
from mlxhog.config.budget import Budget
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import AdamW, Muon, RunContext
from mlxhog.optim.gradients import Rows
from mlxhog.strategies import Idle, Lease
from mlxhog.strategies.delays import Delays
from mlxhog.strategies.locked import LOCK, lock_words
from mlxhog.training.worker.background_tasks import claims_task
from tests.pairs import each_of
from tests.strategies.deaths import FOLDERS, dies, places
from tests.strategies.runs import (
    LR,
    ONE,
    begin_step,
    end_step,
    first,
    new_arena,
    step,
    strategy,
    team,
    worker,
)
from tests.threads import begin, join, wait_until


@each_of("name", ["hogwild", "async_ps"])
def test_staleness_is_the_updates_between_a_read_and_its_write(name):
    with team(name) as (arena, _, slow, other):
        step(other)
        lease = begin_step(slow)
        step(other)
        step(other)
        outcome = end_step(slow, lease)
        assert (outcome.staleness, outcome.version) == (2, 4)
        assert step(slow).staleness == 0
        assert first(arena) == -LR * 5


@each_of("value", [np.inf, np.nan])
@each_of("name", ["hogwild", "async_ps"])
def test_a_gradient_that_is_not_finite_is_dropped_and_counts_no_update(name, value):
    with team(name) as (arena, of, one, _):
        assert not step(one, value).applied
        counts = arena.counters.load("version"), one.context.entry.opt_step, first(arena)
        assert counts == (0, 0, 0.0)
        assert of.steps_done(arena, Ledger(arena)) == 1
        assert step(one).applied
        assert (arena.counters.load("version"), one.context.entry.opt_step) == (1, 1)


def test_with_overlap_staleness_rules_count_the_workers_pending_update():
    with team(overlap=True, staleness_lr="delay_adaptive") as (_, _, one, _):
        late = Delays(one.context)
        assert [late.rate(1.0, staleness) for staleness in (0, 2, 4)] == [1.0, 1.0, 0.5]


STEPS = 5
BEGIN = 2.0**STEPS
HALVES = {"beta1": 0.5, "beta2": 0.5, "weight_decay": 0.0}
ADAMW = AdamW(run=RunContext(shared=True), **HALVES)
MUON = Muon(run=RunContext(hidden=frozenset({"a", "b"}), shared=True), nesterov=0.0, **HALVES)
SPECS = {
    name: ParamSpec(name, shape, "zeros")
    for name, shape in {"a": (30, 90), "b": (40, 30), "c": (7,)}.items()
}
ZEROS = {name: np.zeros(spec.shape, np.float32) for name, spec in SPECS.items()}


def moments_arena(of, rule):
    arena = new_arena(of, SPECS, steps=STEPS, shared=rule.shared_segments)
    for name in rule.shared_segments:
        arena.segment(name)[:] = BEGIN
    return arena


def take_zeros(one):
    """Steps of zero gradients: each halves the moments."""
    while isinstance(lease := one.claim(), Lease):
        one.read()
        one.write(ZEROS, lease, ONE)


def halvings(arena, segment, name):
    """Numbers of steps that the elements of a parameter's moments have seen."""
    slot = arena.layout.slots[name]
    values = arena.segment(segment)[slot.offset : slot.offset + slot.size]
    return set(np.log2(BEGIN / values.astype(np.float64)).tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rule"), [("adamw", ADAMW), ("muon", MUON)])
def test_a_death_at_any_line_loses_no_step_of_shared_moments_that_was_counted(optimizer, rule):
    """At any line of the strategy or of the optimizer, while another worker holds a gradient."""
    of = strategy(optimizer=optimizer, moments="shared", predict="last")
    folders = (*FOLDERS, mlxhog.optim.__path__[0])
    make = partial(worker, of=of, steps=STEPS, optimizer=rule)
    with moments_arena(of, rule) as arena:
        counts = places(partial(take_zeros, make(arena, 1)), folders)
    uncounted = unwritten = 0
    for place in counts:
        with moments_arena(of, rule) as arena:
            victim, survivor = make(arena, 1), make(arena, 2)
            held = survivor.claim()
            survivor.read()
            if not dies(partial(take_zeros, victim), place, min(counts[place], 2), folders):
                continue
            arena.workers.mark_dead(1)
            Ledger(arena).reap(victim.context.owner)
            survivor.write(ZEROS, held, ONE)
            take_zeros(make(arena, 1))
            counted = arena.counters.load("version")
            assert of.steps_done(arena, Ledger(arena)) == STEPS, place
            assert not arena.segment("locks").any()
            for name in SPECS:
                (moments,) = halvings(arena, "m", name)
                assert moments in (counted, counted + 1), place
                uncounted += moments > counted
                if name not in rule.run.hidden:
                    assert halvings(arena, "v", name) == {moments}, place
                    continue
                last = arena.segment("predict.last")[arena.layout.slots[name].offset]
                written = round(float(arena.param(name)[0, 0] / last))  # each step is the same
                np.testing.assert_allclose(arena.param(name)[0, 0], written * last, rtol=1e-5)
                assert counted <= written <= moments, place
                unwritten += written < moments
    assert uncounted > 0, "no death came between a step and its count"
    assert unwritten > 0 or rule is not MUON, "none between a matrix's moments and its step"


BLOCKS = {
    "rows": ParamSpec("rows", (5, 2), "zeros", "rows"),
    "w": ParamSpec("w", (3 * STRIPE,), "zeros"),
}
TOUCHED = {
    "rows": Rows(np.array([3, 1], np.int32), np.ones((2, 2), np.float32)),
    "w": np.ones(3 * STRIPE, np.float32),
}


def step_on(one, grads=TOUCHED):
    return one.write(grads, begin_step(one), ONE)


@pytest.mark.parametrize("name", ["locked", "aig"])
def test_another_waits_until_the_step_is_over(name):
    with team(name, params=BLOCKS) as (arena, _, one, other):
        if name == "locked":
            locks, word = one._lock, 0
        else:
            locks, word = arena.locks(1), lock_words(arena.layout.slots["w"], TOUCHED["w"])[-1]
        locks.acquire(word)
        began = other.context.entry.heartbeat_ns
        threads = begin(step_on, [other])
        wait_until(lambda: other.context.entry.heartbeat_ns > began)  # it beats while it waits
        assert not arena.param("w").any()
        locks.release(word)
        join(threads)
        assert other.context.entry.wait_ns > 0
        assert np.all(arena.param("w") == -LR)
        assert arena.param("rows")[:, 0].tolist() == [0, -LR, 0, -LR, 0]
        assert not arena.segment("locks").any()
        assert name == "aig" or not arena.segment(LOCK).any()


def test_locks_are_those_of_the_blocks_that_a_gradient_touches():
    with team("aig", params=BLOCKS) as (arena, _, _, other):
        rows, dense = arena.layout.slots["rows"], arena.layout.slots["w"]
        of_rows = Rows(np.array([3, 1, 3], np.int32), np.ones((3, 2), np.float32))
        assert (lock_words(rows, of_rows) - rows.row_word0).tolist() == [1, 3]
        every = lock_words(rows, np.ones((5, 2), np.float32)) - rows.row_word0
        assert every.tolist() == [0, 1, 2, 3, 4]
        last = (dense.offset + dense.size - 1) // STRIPE
        whole = list(range(dense.offset // STRIPE, last + 1))
        assert lock_words(dense, TOUCHED["w"]).tolist() == whole
        arena.locks(1).acquire(rows.row_word0)
        free = Rows(np.array([4], np.int32), np.ones((1, 2), np.float32))
        step_on(other, {"rows": free})  # it does not wait for another row
        assert arena.param("rows")[4].tolist() == [-LR, -LR]


def test_all_gradients_go_into_one_optimizer_state_in_the_order_of_their_arrival():
    make = partial(team, "async_ps", rule=AdamW(weight_decay=0.0), layout={"private": ("m", "v")})
    with make() as (several, _, *workers), make() as (alone, _, one, _):
        for k in range(6):
            step(workers[k % 2], float(k - 2))
            step(one, float(k - 2))
        assert np.array_equal(several.params[:4], alone.params[:4])
        assert several.workers.entry(1).opt_step == 6
        assert np.array_equal(several.segment("m.1"), alone.segment("m.1"))
        assert not several.segment("m.2").any()


def running(arena, slot, of):
    one = worker(arena, slot, of, steps=60)
    one.context.entry.state = WorkerState.RUNNING
    return one


@pytest.mark.parametrize("ends", ["finished", "done", "eval", "sample"])
def test_no_worker_waits_for_one_that_has_ended_or_has_a_background_task(ends):
    of = strategy("ssp", slack=0)
    with new_arena(of, n_tickets=64) as arena:
        one, other = running(arena, 1, of), running(arena, 2, of)
        step(other)
        if ends == "finished":
            other.context.entry.state = WorkerState.FINISHED
        elif ends == "done":
            other.context.budget = Budget(tokens=0)
            assert other.claim() is Idle.DONE
        else:
            arena.counters.store(f"{ends}_asked", 1)
            assert claims_task(other.context, ends)
        for _ in range(5):
            step(one)


def test_a_worker_is_back_from_an_evaluation_as_one_of_the_slowest_and_keeps_none_waiting():
    of = strategy("ssp", 3, slack=1)
    with new_arena(of, n_tickets=64) as arena:
        one, other, away = (running(arena, slot, of) for slot in (1, 2, 3))
        step(away)
        away.context.settle()
        for _ in range(5):
            step(one)
            step(other)
        step(one)
        assert of.clocks(arena) == {1: 6, 2: 6}
        step(one)
        lease = away.claim()
        assert of.clocks(arena) == {1: 7, 2: 6, 3: 6}
        step(other)  # it does not wait
        away.read()
        end_step(away, lease)
        assert of.clocks(arena) == {1: 7, 2: 7, 3: 7}


@each_of(
    ("counter", "value", "idle"),
    [("command", ControlCommand.DRAIN, Idle.DONE), ("pause", 1, Idle.WAIT)],
)
def test_a_worker_at_the_gate_hears_the_supervisor(counter, value, idle):
    of = strategy("ssp", slack=0)
    with new_arena(of) as arena:
        one, other = running(arena, 1, of), running(arena, 2, of)
        other.claim()
        step(one)
        arena.counters.store(counter, value)
        assert one.claim() is idle


@pytest.mark.parametrize("slack", [0, 1, 3])
def test_clocks_and_staleness_stay_within_their_bounds_at_any_speeds_and_deaths(slack):
    """Steps of four workers in a random order, as far as the gate lets them; some of them die."""
    workers, steps, rng = 4, 50, random.Random(slack)
    of, worst = strategy("ssp", workers, slack=slack), 0
    with new_arena(of, steps=steps, n_tickets=64) as arena:
        team = {slot: running(arena, slot, of) for slot in range(1, workers + 1)}
        leases = {}
        for one in team.values():
            one._enter()
        while of.steps_done(arena, Ledger(arena)) < steps:
            slot = rng.choices(list(team), weights=(8, 4, 2, 1))[0]
            one, clocks = team[slot], of.clocks(arena)
            if slot in leases and rng.random() < 0.05:
                arena.workers.mark_dead(slot)
                Ledger(arena).reap(one.context.owner)
                team[slot] = running(arena, slot, of)
                del leases[slot]
            elif slot in leases:
                worst = max(worst, end_step(one, leases.pop(slot)).staleness)
            elif slot not in clocks:
                one._enter()
            elif clocks[slot] - min(clocks.values()) <= slack:
                if isinstance(lease := one.claim(), Lease):
                    one.read()
                    leases[slot] = lease
            clocks = of.clocks(arena).values()
            assert not clocks or max(clocks) - min(clocks) <= slack + 1
        assert 0 < worst <= (workers - 1) * (2 * slack + 1)


@each_of("rule", ["delay_adaptive", "drop", "drop:1"])
def test_staleness_rules_count_the_simulated_workers(rule):
    four = {"sim_staleness": "fixed:3", "staleness_lr": rule}
    with team("sim", 1, **four) as (arena, of, one):
        outcomes = [step(one) for _ in range(4)]
        assert [outcome.staleness for outcome in outcomes] == [0, 1, 2, 2 if ":" in rule else 3]
        assert arena.counters.load("version") == (2 if ":" in rule else 4)
        assert of.steps_done(arena, Ledger(arena)) == 4
        assert first(arena) == -LR * arena.counters.load("version")
