"""Rounds that do not wait for the slowest, in one process."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.config import strategies as choices
from mlxhog.config.budget import Budget
from mlxhog.errors import ConfigError
from mlxhog.strategies import Idle, Lease, build
from mlxhog.strategies.backup_workers import QuorumWorker, SyncWithBackups, members
from tests.strategies.deaths import after, die_and_be_replaced, lines
from tests.strategies.test_sync import LR, context, note_step, strategy
from tests.threads import begin, join

WORKERS, ROUNDS = 3, 3
OF = strategy(SyncWithBackups, WORKERS, backup_workers=1)


def new_arena():
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    params = {name: parameter for name in "abc"}
    arena = Arena.create(plan(params, max_workers=3, n_tickets=16, extra=OF.segments(3)))
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, rank, rounds=ROUNDS):
    ctx = context(arena, rank + 1, OF)
    ctx.step_limit = rounds
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    return QuorumWorker(ctx)


def write(worker, lease):
    """A gradient of 1 + rank everywhere."""
    assert isinstance(lease, Lease)
    gradient = np.full(4, 1.0 + worker.context.rank, np.float32)
    return worker.write({name: gradient for name in "abc"}, lease, samples=1)


def take_rounds(worker):
    while (lease := worker.claim()) is not Idle.DONE:
        if isinstance(lease, Lease):
            worker.read()
            write(worker, lease)


def together(*workers, run=take_rounds):
    return begin(run, workers)


def test_a_round_is_the_mean_of_the_first_and_no_worker_waits_for_the_last():
    with new_arena() as arena:
        slow, *fast = [worker(arena, rank) for rank in (1, 0, 2)]
        lease = slow.claim()
        assert lease is Idle.WAIT  # rank 0 decides on the first round
        (first,) = together(fast[0], run=lambda one: write(one, one.claim()))
        while not isinstance(lease := slow.claim(), Lease):
            pass
        slow.read()
        write(fast[1], fast[1].claim())
        join([first])
        assert members(arena) == (1, [0, 2])
        assert arena.param("b").tolist() == [-LR * 2.0] * 4
        assert OF.steps_done(arena, Ledger(arena)) == arena.counters.load("version") == 1
        outcome = write(slow, lease)
        assert (outcome.applied, outcome.too_late, slow.counts_step()) == (False, True, False)
        assert arena.param("b").tolist() == [-LR * 2.0] * 4
        assert Ledger(arena).state(0, 1) == TicketState.DONE  # its text is passed over


def test_a_late_worker_continues_with_the_newest_round_and_leaves_no_ticket_behind():
    with new_arena() as arena:
        slow, *fast = [worker(arena, rank) for rank in (1, 0, 2)]
        begun = fast[0].claim()  # rank 0 decides on the first round
        lease = slow.claim()
        first = together(fast[0], run=lambda one: (write(one, begun), take_rounds(one)))
        join([*first, *together(fast[1])])
        write(slow, lease)
        while (lease := slow.claim()) is not Idle.DONE:
            assert lease is Idle.WAIT
        assert OF.steps_done(arena, Ledger(arena)) == ROUNDS
        assert Ledger(arena).watermark == ROUNDS * WORKERS
        assert OF.between_steps(arena)


def test_a_checkpoint_passes_over_the_rounds_that_an_evaluating_worker_misses():
    with new_arena() as arena:
        slow, *fast = [worker(arena, rank, ROUNDS) for rank in (1, 0, 2)]
        join(together(*fast))  # all rounds, while the other evaluates
        arena.counters.store("pause", 1)
        ledger = Ledger(arena)
        position = ledger.position()
        assert slow.claim() is Idle.WAIT
        assert ledger.position() == position  # nothing moves while it is saved
        assert OF.between_steps(arena)
        OF.settle(arena, ledger)
        assert (ledger.watermark, arena.counters.load("steps")) == (ROUNDS * WORKERS, ROUNDS)
        arena.counters.store("pause", 0)
        while (lease := slow.claim()) is not Idle.DONE:
            assert lease is Idle.WAIT
        assert ledger.watermark == ROUNDS * WORKERS


def test_a_round_is_begun_if_the_workers_that_it_waits_for_end_it_in_time():
    with new_arena() as arena:
        first, *_ = [worker(arena, rank) for rank in range(WORKERS)]
        arena.counters.store("start_ns", monotonic_ns())
        first.context.budget = Budget(seconds=60.0)
        for slot, seconds in ((1, 1.0), (2, 100.0), (3, 10.0)):
            note_step(arena.workers.entry(slot), seconds)
        assert OF.step_s(arena) == 10.0
        assert isinstance(first.claim(), Lease)


def test_a_ticket_that_is_not_done_is_not_taken_for_one_that_a_predecessor_applied():
    with new_arena() as arena:
        one = worker(arena, 0)
        assert one.context.ledger.claim_exact(0, 0, 99)
        assert one.claim() is Idle.WAIT


def test_steps_are_counted_by_one_worker_of_each_round():
    counted = []

    def take(one):
        while (lease := one.claim()) is not Idle.DONE:
            if isinstance(lease, Lease):
                one.read()
                write(one, lease)
                counted.append(one.counts_step())

    with new_arena() as arena:
        join(together(*[worker(arena, rank) for rank in range(WORKERS)], run=take))
        assert sum(counted) == ROUNDS
        taken = sum(arena.workers.entry(k + 1).opt_step for k in range(WORKERS))
        assert ROUNDS * (WORKERS - 1) <= taken <= ROUNDS * WORKERS  # a round waits for all but one


@pytest.mark.parametrize(("backups", "workers"), [(2, 2), (1, 1), (1, 25)])
def test_a_round_has_a_worker_to_wait_for(backups, workers):
    config = TrainConfig(strategy=choices.Sync(backup_workers=backups))
    with pytest.raises(ConfigError, match="backup_workers is"):
        build(config, workers)


@pytest.mark.slow
def test_a_death_at_any_line_stops_no_other_worker_and_costs_at_most_one_torn_apply():
    """Of the rank that decides on rounds, and of another."""
    methods = ("claim", "_pass_over", "pass_over", "_decide", "write", "_wait_for_quorum")
    reached = 0
    for method, number in lines(QuorumWorker, methods):
        with new_arena() as arena:
            rank = number % 2
            make = partial(worker, arena, rank)
            victim = make()
            others = [worker(arena, k) for k in range(WORKERS) if k != rank]
            begun = threading.Event()
            threads = together(*others, run=partial(after, begun, take_rounds))

            def run(one, begun=begun):
                begun.set()
                take_rounds(one)

            reached += die_and_be_replaced(victim, (method, number), make, run)
            where = f"{method}+{number}"
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), f"another worker is stuck after a death at {where}"
            ledger = Ledger(arena)
            assert OF.steps_done(arena, ledger) == arena.counters.load("version") == ROUNDS, where
            assert ledger.position()["torn"] <= 1, where
            least, most = -LR * 2.5 * ROUNDS, -LR * 1.5 * (ROUNDS - 1)  # the members are chance
            for name in "abc":
                values = arena.param(name)
                assert np.all(values == values[0]), where
                assert least <= values[0] <= most, where
    assert reached >= 25


def strategy_of(workers):
    config = TrainConfig(strategy=choices.Sync(backup_workers=1))
    return build(config, workers)


def test_a_step_counts_as_many_batches_as_it_waits_for():
    assert strategy_of(3).batches_per_step() == 2
