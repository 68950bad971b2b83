"""The strategies that `--strategy auto` leaves open: one arena and one start for all of them."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.training.checkpoints import begin, fill_parameters, restore
from mlxhog.training.choose_strategy import LOCK_FREE, ROUNDS
from mlxhog.training.plan import make_plan
from tests.training.small import small_config

CHOICES = {"sync": ROUNDS, "hogwild": LOCK_FREE}
NAMES = tuple(CHOICES)
SAME = ("budget", "private_state", "shared_state")


def open_config(tmp_path, **options):
    """Two workers, and an open strategy."""
    given = {"strategy": "auto", "workers": "mlx:cpu*2", "optimizer": "muon", "lr": None}
    return small_config(tmp_path, **{**given, **options})


def named(config, name):
    """The plan of a run with that strategy from the beginning."""
    return make_plan(replace(config, strategy=CHOICES[name]))


@pytest.mark.parametrize("budget", [{"steps": 20}, {"steps": None, "tokens": 5000}])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap"])
def test_a_strategy_that_is_chosen_has_the_numbers_that_it_has_when_it_is_named(
    tmp_path, optimizer, budget
):
    config = open_config(tmp_path, optimizer=optimizer, **budget)
    plan = make_plan(config)
    assert {one.strategy.name for one in plan.alternatives} == set(NAMES)
    for name in NAMES:
        chosen = plan.with_strategy(name, measured=True)
        alone = named(config, name)
        for field in SAME:
            assert getattr(chosen, field) == getattr(alone, field), field
        assert chosen.strategy == replace(alone.strategy, open=True)
        assert chosen.resolution.stored == replace(alone.resolution.stored, strategy=None)
        assert chosen.resolution.automatic == alone.resolution.automatic
        assert chosen.schedule(0.0)(0.5, 10) == alone.schedule(0.0)(0.5, 10)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap"])
def test_an_arena_for_either_strategy_has_what_both_need_and_the_size_of_the_larger(
    tmp_path, optimizer
):
    config = open_config(tmp_path, optimizer=optimizer, model="tiny")
    plan, alone = make_plan(config), [named(config, name) for name in NAMES]
    for one in alone:
        for name, segment in one.layout.segments.items():
            has = plan.layout.segments[name]
            assert (has.dtype, has.count >= segment.count) == (segment.dtype, True), name
    # Slots for workers that join have a ring of records, and state that is private in both.
    largest = max(one.arena_bytes for one in alone)
    private = [m for m in alone[0].private_state if m in alone[1].private_state]
    free = alone[1].free_slots * (len(private) * plan.layout.n_floats * 4 + (1 << 20))
    assert plan.arena_bytes <= largest + free


@pytest.mark.slow
def test_a_resumed_run_has_the_moments_of_the_strategy_that_is_chosen(tmp_path):
    first = train(open_config(tmp_path, workers="mlx:cpu", steps=3))
    config = open_config(tmp_path, resume=first.run)
    plan = make_plan(config)
    for name in NAMES:
        chosen, alone = plan.with_strategy(name, measured=True), named(config, name)
        with Arena.create(plan.layout) as shared, Arena.create(alone.layout) as own:
            fill_parameters(plan, shared)
            start = begin(chosen, shared, Ledger(shared))
            assert start == restore(alone, own, Ledger(own))
            moments = [f"{m}.{k}" for m in alone.private_state for k in (1, 2)]
            for segment in ("params", *moments, *alone.shared_state):
                n = alone.layout.probe.offset
                expected = own.segment(segment)[:n]
                assert np.any(expected)
                assert np.array_equal(shared.segment(segment)[:n], expected), segment
            for slot in (1, 2):
                assert shared.workers.entry(slot).opt_step == own.workers.entry(slot).opt_step
            for counter in ("version", "moments_since", "first_ticket"):
                assert shared.counters.load(counter) == own.counters.load(counter)
