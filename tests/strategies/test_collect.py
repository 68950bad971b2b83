"""Rounds of claimed sequences: each counts once, whoever computes it; none waits for a late one."""

import itertools
from collections import Counter
from random import Random

import numpy as np
import pytest

from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import MAX_NONFINITE, WorkerState
from mlxhog.strategies import BatchSize, Idle, Lease, build
from tests.strategies.runs import (
    LR,
    begun,
    config,
    end_step,
    first,
    full,
    new_arena,
    record,
    strategy,
    worker,
    write,
)


def sequences(lease, each):
    """Numbers of the sequences of a lease, in tickets of so many."""
    return [one.ticket * each + k for one in lease.parts for k in range(one.begin, one.end)]


@pytest.fixture
def of():
    return strategy("collect")


@pytest.fixture
def arena(of):
    with new_arena(of) as arena:
        yield arena


def take(one, value):
    """A whole step of one sequence."""
    record(one, write(one, begun(one), full(one.context.arena, value), 1))


@pytest.mark.slow
def test_every_sequence_counts_once_whoever_claims_stalls_dies_joins_or_leaves():
    seen = Counter()
    for seed in range(20):
        seen += play(seed)
    assert min(seen[act] for act in ("died", "dropped", "joined", "left")) > 5, seen


def play(seed):
    """Train with workers that act in a random order, and count what they did."""
    each, rounds, random = 4, 5, Random(seed)
    of = build(config("collect", batch_size=2, grad_accumulation=2), 3, max_workers=4)
    values = np.random.default_rng(seed).uniform(1.0, 2.0, 3 * each * rounds)
    with new_arena(of, n_tickets=64) as arena:
        ledger, words, pending = Ledger(arena), of.words(arena), {}
        team = {slot: worker(arena, slot, of, steps=rounds) for slot in (1, 2, 3)}
        seen = Counter()
        while of.steps_done(arena, ledger) < rounds:
            slot, act = random.randint(1, 4), random.random()
            if slot not in team:
                if act < 0.2:
                    team[slot] = worker(arena, slot, of, steps=rounds)
                    seen["joined"] += 1
            elif act < 0.05:
                seen["died"] += 1
                pending.pop(slot, None)
                arena.workers.mark_dead(slot)
                ledger.reap(team.pop(slot).context.owner)
            elif slot not in pending and act < 0.1 and len(team) > 1:
                seen["left"] += 1
                team.pop(slot)
                arena.workers.entry(slot).state = WorkerState.FINISHED
            elif slot in pending and act < 0.6:
                lease = pending.pop(slot)
                own = sequences(lease, each)
                gradient = full(arena, np.mean(values[own]))
                outcome = team[slot].write(gradient, lease, BatchSize(len(own), len(own), len(own)))
                seen["dropped"] += outcome.is_stale
            elif slot in pending:
                words["late", slot - 1] = random.choice([0, words["late", slot - 1]])
            elif isinstance(lease := team[slot].claim(), Lease):
                assert len(sequences(lease, each)) <= 2, "a micro-batch at most"
                pending[slot] = lease
        assert first(arena) == pytest.approx(-LR * rounds * values.mean(), rel=1e-5)
        assert ledger.position()["torn"] == 0
        assert ledger.watermark == 3 * rounds == 3 * arena.counters.load("version")
    return seen


def test_a_late_portion_is_computed_again_and_only_the_first_gradient_counts(of, arena):
    slow, other = (worker(arena, slot, of) for slot in (1, 2))
    late = begun(slow)
    end_step(other, begun(other), 2.0)
    of.words(arena)["late", 0] = 0
    again = begun(other)
    assert again.parts == late.parts
    end_step(other, again, 4.0)
    assert first(arena) == pytest.approx(-LR * 3.0)
    outcome = end_step(slow, late, 100.0)
    assert (outcome.applied, outcome.is_stale) == (False, True)
    assert first(arena) == pytest.approx(-LR * 3.0)


def test_the_owner_of_a_portion_that_another_has_begun_again_may_still_be_first(of, arena):
    slow, other = (worker(arena, slot, of) for slot in (1, 2))
    late = begun(slow)
    end_step(other, begun(other), 2.0)
    of.words(arena)["late", 0] = 0
    again = begun(other)
    assert end_step(slow, late, 4.0).applied
    assert end_step(other, again, 100.0).is_stale
    assert first(arena) == pytest.approx(-LR * 3.0)


def test_a_worker_begins_nothing_that_the_others_are_expected_to_end_sooner(of, arena):
    fast, slow = (worker(arena, slot, of) for slot in (1, 2))
    for rank, seconds in enumerate((100.0, 1e5)):
        of.words(arena).set_real(("seconds", rank), seconds)
    lease = begun(fast)
    assert slow.claim() is Idle.WAIT
    end_step(fast, lease, 2.0)
    end_step(fast, begun(fast), 4.0)
    assert first(arena) == pytest.approx(-LR * 3.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((100.0, 100.0), (4, 4)), ((100.0, 300.0), (4, 2)), ((0.0, 0.0), (4, 4))],
)
def test_a_worker_claims_what_it_is_expected_to_end_with_the_others(seconds, expected):
    of = strategy("collect", batch_size=4)
    with new_arena(of) as arena:
        for rank, own in enumerate(seconds):
            of.words(arena).set_real(("seconds", rank), own)
        leases = [begun(worker(arena, slot, of)) for slot in (1, 2)]
        assert tuple(len(sequences(lease, 4)) for lease in leases) == expected


def test_a_death_within_a_sum_repeats_the_round_and_counts_nothing_twice(of, arena, monkeypatch):
    victim, other = (worker(arena, slot, of) for slot in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(victim._mean, "put", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            end_step(victim, begun(victim), 2.0)
    take(other, 2.0)
    assert other.claim() is Idle.WAIT, "the victim may still be adding"
    arena.workers.mark_dead(1)
    for value in (2.0, 4.0):
        take(other, value)
    assert first(arena) == pytest.approx(-LR * 3.0)
    assert (arena.counters.load("version"), arena.counters.load("tokens")) == (1, 20)


def test_a_death_after_its_gradient_is_in_the_sum_leaves_no_token_out(of, arena):
    victim, other = (worker(arena, slot, of) for slot in (1, 2))
    write(victim, begun(victim), full(arena, 2.0), 1)
    arena.workers.mark_dead(1)
    take(other, 4.0)
    assert first(arena) == pytest.approx(-LR * 3.0)
    assert (arena.counters.load("steps"), arena.counters.load("tokens")) == (1, 20)


def test_a_gradient_that_is_not_finite_costs_its_round_only(of, arena):
    one = worker(arena, 1, of)
    for value in (2.0, float("nan")):
        end_step(one, begun(one), value)
    assert first(arena) == 0.0
    assert not end_step(one, begun(one), 2.0).applied
    assert end_step(one, begun(one), 4.0).applied
    assert first(arena) == pytest.approx(-LR * 3.0)
    assert (of.steps_done(arena, Ledger(arena)), arena.counters.load("version")) == (2, 1)


def test_a_skipped_round_is_one_gradient_that_is_not_finite_however_many_portions_it_has():
    of = strategy("collect", grad_accumulation=32)
    with new_arena(of, n_tickets=64) as arena:
        one = worker(arena, 1, of)
        entry = one.context.entry

        def take_round(*values):
            portions, values = 0, itertools.chain(values, itertools.repeat(2.0))
            ended = of.words(arena)["ended"]
            while of.words(arena)["ended"] == ended:
                take(one, next(values))
                assert entry.nonfinite_in_row <= 1
                portions += 1
            return portions

        assert take_round(float("nan")) >= MAX_NONFINITE
        assert (entry.nonfinite_in_row, entry.dropped) == (1, 1)
        take_round()
        assert (entry.nonfinite_in_row, entry.dropped) == (0, 1)
        assert (arena.counters.load("version"), arena.counters.load("steps")) == (1, 2)


def test_rounds_that_are_not_finite_end_a_run_whichever_workers_end_them(of, arena):
    one, other = (worker(arena, slot, of, steps=99) for slot in (1, 2))
    for turn in range(MAX_NONFINITE):
        for each in (one, other) if turn % 2 else (other, one):
            take(each, float("nan"))
    for each in (one, other):
        assert each.claim() is Idle.DONE
        entry = each.context.entry
        assert (entry.nonfinite_in_row, entry.dropped) == (MAX_NONFINITE, MAX_NONFINITE // 2)


def test_an_idle_worker_that_ends_a_round_counts_it_as_skipped(of, arena, monkeypatch):
    slow, idle = (worker(arena, slot, of) for slot in (1, 2))
    monkeypatch.setattr(slow, "_finish", lambda *args: None)  # it is stopped before
    for _ in range(2):
        take(slow, float("nan"))
    assert idle.claim() is Idle.WAIT
    assert (of.steps_done(arena, Ledger(arena)), idle.context.entry.dropped) == (1, 1)


def test_workers_join_and_leave_unless_the_division_is_fixed():
    assert strategy("collect").fixed is None
    fixed = strategy("collect", determinism="rounds", steps=9).fixed
    assert "determinism=rounds divides the sequences" in fixed
