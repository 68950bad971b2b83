"""A synchronous round between two workers, in one process."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.optimizers import SGD as PlainSGD
from mlxhog.config.options import options
from mlxhog.config.schedules import Constant
from mlxhog.config.strategy import StrategyChoice
from mlxhog.optim import SGD
from mlxhog.strategies import RUNS, Context, Idle, Lease, RunFacts
from mlxhog.strategies.backup_workers import SyncWithBackups
from mlxhog.strategies.control_words import Words
from mlxhog.strategies.disjoint import Disjoint
from mlxhog.strategies.division import SharesBySpeed
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.sim import Sim
from mlxhog.strategies.sync import Sync, SyncWorker, sync_segments
from mlxhog.strategies.sync_then_hogwild import SyncThenHogwild
from tests.threads import in_threads

LR = 0.5


@pytest.fixture
def arena():
    parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
    layout = plan({"w": parameter}, max_workers=2, n_tickets=8, extra=sync_segments(2, 1))
    with Arena.create(layout) as arena:
        arena.counters.store("command", Command.TRAIN)
        yield arena


def strategy(kind, workers=2, **values):
    """A strategy with facts of a run, and numbers of its own by their flat names."""
    named = {run: choice.name for choice, run in RUNS.items()}
    named |= {Sync: "sync", SyncWithBackups: "sync", Sim: "sim"}
    if kind is Disjoint:
        values["blocks"] = "disjoint"
    numbers = {name: value for name, value in values.items() if name in STRATEGIES.numbers()}
    own = {name: value for name, value in values.items() if name not in numbers}
    return kind(chosen(named.get(kind, "hogwild"), numbers), facts(**own), workers)


def facts(**values):
    """Facts of a run with plain steps."""
    return replace(FACTS, **values)


FACTS = RunFacts(
    sequences=1, seq_len=1, prediction="none", determinism="none", seed=0, lr=LR, ngram_lr=0.03,
    clip=0.0, optimizer=PlainSGD(weight_decay=0.0), schedule=Constant(warmup=0.0),
    fresh_optimizer=False,
)  # fmt: skip


def chosen(name, numbers):
    """A choice with those numbers that it has."""
    choice = STRATEGIES.find(name)
    own = {spec.flat for spec in options(choice).values()}
    made = STRATEGIES.make(choice, {flat: numbers[flat] for flat in numbers if flat in own})
    assert isinstance(made, StrategyChoice)
    return made


def context(arena, slot, of=None):
    entry = arena.workers.acquire_slot(slot=slot)
    backend = SimpleNamespace(inbox=arena.params)  # it computes with the parameters themselves
    return Context(
        arena=arena,
        ledger=Ledger(arena),
        entry=entry,
        slot=slot,
        owner=entry.incarnation,
        strategy=of or strategy(Sync),
        backend=backend,
        optimizer=SGD(),
        metal=None,
        schedule=lambda progress, update: LR,
        budget=Budget(steps=10),
        step_limit=10,
        decay=frozenset(),
        model=SimpleNamespace(),
    )


def words(arena):
    """The words that the workers of a round share; `sync.py` has their table."""
    return Words(arena.segment("sync.words"))


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def step(worker, gradient):
    """One worker's part of a round."""
    lease = worker.claim()
    assert isinstance(lease, Lease)
    worker.context.entry.phase = Phase.COMPUTE
    worker.read()
    worker.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def test_a_worker_that_waits_amid_a_round_does_not_count_as_holding_still(arena):
    first, second = SyncWorker(context(arena, 1)), SyncWorker(context(arena, 2))
    entry = first.context.entry
    thread = threading.Thread(target=step, args=(first, 1.0), daemon=True)
    thread.start()
    wait_until(lambda: words(arena).load(2, 0) == 1)
    heartbeat_ns = entry.heartbeat_ns
    wait_until(lambda: entry.heartbeat_ns > heartbeat_ns)  # now it waits for the other worker
    assert entry.phase not in (Phase.IDLE, Phase.WAITING)
    step(second, 3.0)
    thread.join(30)
    assert arena.param("w").tolist() == [-LR * 2.0] * 4


def test_a_round_is_clipped_by_the_norm_of_its_mean_gradient(arena):
    of = strategy(Sync, clip=1.0)
    first, second = SyncWorker(context(arena, 1, of)), SyncWorker(context(arena, 2, of))
    thread = threading.Thread(target=step, args=(first, 2.0), daemon=True)
    thread.start()
    step(second, 4.0)  # the mean is 3 in each of four elements, so its norm is 6
    thread.join(30)
    np.testing.assert_allclose(arena.param("w"), -LR * 3.0 / 6.0, rtol=1e-5)


@pytest.mark.parametrize("counted", [10, 20])
def test_the_step_size_of_a_round_does_not_depend_on_who_has_counted_the_last_one(arena, counted):
    first = context(arena, 1)
    first.budget, first.step_limit = Budget(tokens=100), None
    first.schedule = lambda progress, update: 1.0 - progress
    first.entry.tokens = 10
    arena.counters.store("tokens", counted)  # with the other worker's 10, or not yet
    workers = [SyncWorker(first), SyncWorker(context(arena, 2))]
    leases = [worker.claim() for worker in workers]

    def take(rank):
        lease = leases[rank]
        assert isinstance(lease, Lease)
        workers[rank].read()
        workers[rank].write({"w": np.ones(4, np.float32)}, lease, samples=1)

    in_threads(take, (0, 1))
    np.testing.assert_array_equal(arena.param("w"), np.float32([-0.8] * 4))


def test_a_round_that_was_done_is_not_done_again_because_a_death_left_it_uncounted(arena):
    first = context(arena, 1)
    first.step_limit = 1
    words(arena).store(2, 0, 3)  # all stages of the first round
    assert arena.counters.load("steps") == 0
    assert SyncWorker(first).claim() is Idle.DONE


def note_step(entry, seconds):
    """Let a worker's only step so far have taken `seconds`."""
    entry.compute_ns, entry.steps = int(seconds * 1e9), 1


@pytest.mark.parametrize(("slowest_s", "idle"), [(100.0, Idle.DONE), (10.0, None)])
def test_a_round_is_begun_only_if_the_slowest_worker_ends_it_in_time(arena, slowest_s, idle):
    first, second = (context(arena, slot) for slot in (1, 2))
    arena.counters.store("start_ns", monotonic_ns())
    first.budget, first.step_limit = Budget(seconds=60.0), None
    note_step(first.entry, 0.5)
    note_step(second.entry, slowest_s)
    claim = SyncWorker(first).claim()
    assert claim == (idle or Lease(0, 0))
    assert first.strategy.step_s(arena) == slowest_s
    assert strategy(SyncThenHogwild).step_s(arena) == slowest_s
    assert strategy(Hogwild).step_s(arena) == 0.5  # of which the fastest still begins one


def test_a_ticket_that_is_not_done_is_not_taken_for_one_that_a_predecessor_applied(arena):
    worker = SyncWorker(context(arena, 1))
    ledger = worker.context.ledger
    assert ledger.claim_exact(0, 0, 99)
    assert worker.claim() is Idle.WAIT
    ledger.begin_apply(0, 0, 99)
    ledger.finish(0, 0, 99)
    assert worker.claim() == Lease(0, 0)


# -- sequences dealt out by speed ------------------------------------------------------------------

EACH = 4  # sequences of a ticket


def by_speed(arena, slot):
    of = strategy(Sync, sync_shares="speed", sequences=EACH)
    return SyncWorker(context(arena, slot, of))


def note_speeds(arena, *seconds):
    """Let each rank have taken this long for a sequence so far."""
    for rank, each_s in enumerate(seconds):
        words(arena).store_float(3 + 2 * rank, 1, each_s)


def value(part):
    """The gradients of a part's sequences; eight of a round are 1 to 8."""
    return [float(1 + EACH * part.ticket + row) for row in range(part.begin, part.end)]


def take_round(worker):
    """One worker's part of a round, with the mean gradient of the sequences that it leased."""
    lease = worker.claim()
    while lease is Idle.WAIT:
        lease = worker.claim()
    assert isinstance(lease, Lease)
    assert lease.parts is not None
    values = [one for part in lease.parts for one in value(part)]
    worker.read()
    grads = {"w": np.full(4, np.mean(values), np.float32)} if values else {}
    worker.write(grads, lease, samples=len(values))
    return lease


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [((0.0, 1.0), [4, 4]), ((1.0, 1.2), [4, 4]), ((1.0, 2.9), [6, 2]), ((9.0, 1.0), [0, 8])],
)
def test_a_round_by_speed_has_the_mean_gradient_of_all_its_sequences(arena, seconds, counts):
    workers = [by_speed(arena, slot) for slot in (1, 2)]
    note_speeds(arena, *seconds)
    for slot in (1, 2):  # gradients that are not written have no effect
        arena.segment(f"grads.{slot}").fill(np.nan)
    leases = []
    in_threads(lambda worker: leases.append(take_round(worker)), workers)
    leases.sort(key=lambda lease: lease.ticket)
    rows = [[one for part in lease.parts or () for one in value(part)] for lease in leases]
    assert [len(of_rank) for of_rank in rows] == counts
    assert rows[0] + rows[1] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert arena.param("w").tolist() == pytest.approx([-LR * 4.5] * 4, rel=1e-6)
    assert [Ledger(arena).state(0, ticket) for ticket in (0, 1)] == [TicketState.DONE] * 2


def test_the_replacement_of_a_dead_worker_computes_the_same_sequences(arena):
    first, second = by_speed(arena, 1), by_speed(arena, 2)
    note_speeds(arena, 1.0, 2.9)
    assert isinstance(first.claim(), Lease)
    lease = second.claim()
    note_speeds(arena, 1.0, 1.0)  # measured anew since
    for worker in (first, second):
        arena.workers.mark_dead(worker.context.slot)
        Ledger(arena).reap(worker.context.owner)
    by_speed(arena, 1).claim()
    assert by_speed(arena, 2).claim() == lease


def test_a_worker_without_a_sequence_gets_one_again(arena):
    note_speeds(arena, 1.0, 9.0)
    shares, rounds = SharesBySpeed(words(arena), 2, EACH), 0
    while shares.counts()[1] == 0:
        shares.note(1, samples=0, took_ns=0)
        rounds += 1
        assert rounds < 100
    assert rounds > 5
