"""Rounds and local methods beside the laws: learning rates, backup workers, division, replicas."""

import itertools

import numpy as np
import pytest

from mlxhog.arena import plan
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.config.budget import Budget
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import AdamW, Muon, RunContext
from mlxhog.optim.soap import Soap
from mlxhog.strategies import BatchSize, Idle, Lease, TicketPart, division
from tests.pairs import each_of
from tests.strategies import runs
from tests.strategies.runs import (
    LR,
    Run,
    begin_step,
    begun,
    context,
    empty_arena,
    end_step,
    first,
    full,
    new_arena,
    record,
    step,
    strategy,
    worker,
    write,
)
from tests.strategies.test_laws import H, of_both
from tests.threads import begin, in_threads, join


def there(of, **layout):
    """An arena whose workers are there for every round, also those that the test leaves out."""
    arena = new_arena(of, **layout)
    for rank in range(of.workers):
        of.words(arena)["ready", rank] = 99
    return arena


@pytest.fixture
def of():
    return strategy("sync")


@pytest.fixture
def arena(of):
    with there(of) as arena:
        yield arena


def test_a_round_is_clipped_by_the_norm_of_its_mean_gradient(arena):
    clipped = strategy("sync", clip=1.0)
    one, other = (worker(arena, slot, clipped) for slot in (1, 2))
    threads = begin(lambda one: step(one, 2.0), [one])
    step(other, 4.0)  # the mean is 3 in each of four elements, so its norm is 6
    join(threads)
    assert first(arena) == pytest.approx(-LR * 3.0 / 6.0, rel=1e-5)


def by_tokens(budget):
    """Fields of a context whose learning rate falls from 1 with the tokens of a budget."""
    return {
        "budget": Budget(tokens=budget), "schedule": lambda progress, update: 1.0 - progress,
        "step_limit": None,
    }  # fmt: skip


@each_of("dead", [(), (1,), (2,), (1, 2)])
def test_tokens_count_and_give_the_learning_rate_also_if_workers_die_at_a_round_s_end(of, dead):
    with new_arena(of) as arena:
        team = {slot: worker(arena, slot, of, **by_tokens(100)) for slot in (1, 2)}

        def take_round(slot):
            done = write(team[slot], begun(team[slot]), full(arena, 1.0), 1)
            if slot not in dead:
                record(team[slot], done)

        for _ in range(2):
            in_threads(take_round, team)
            for slot in dead:
                arena.workers.mark_dead(slot)
                team[slot] = worker(arena, slot, of, **by_tokens(100))
        of.settle(arena, Ledger(arena))
        assert arena.counters.load("tokens") == 40
        assert first(arena) == pytest.approx(-1.0 - 0.8)


@each_of(("name", "options"), [("sync", {}), ("collect", {"determinism": "rounds", "steps": 3})])
def test_the_learning_rate_is_that_of_all_tokens_also_after_a_ticket_with_fewer(name, options):
    each, sizes = 2, (2, 2, 1)  # sequences of the three tickets of an epoch
    of = strategy(name, grad_accumulation=each, **options)
    with new_arena(of, n_tickets=len(sizes)) as arena:

        def work(one):
            for _ in range(3):
                lease = begun(one)
                parts = lease.parts or [TicketPart(*lease[:2], 0, each)]
                samples = sum(min(part.end, sizes[part.ticket]) - part.begin for part in parts)
                record(one, write(one, lease, full(arena, 1.0), samples))

        in_threads(work, [worker(arena, slot, of, **by_tokens(200)) for slot in (1, 2)])
        assert first(arena) == pytest.approx(-(1.0 + 0.8 + 0.65))


@pytest.mark.parametrize(("slowest_s", "idle"), [(100.0, Idle.DONE), (10.0, None)])
def test_a_round_is_begun_only_if_the_slowest_worker_ends_it_in_time(arena, of, slowest_s, idle):
    arena.counters.store("start_ns", monotonic_ns())
    one = worker(arena, 1, of, budget=Budget(seconds=60.0), step_limit=None)
    context(arena, 2, of)
    for slot, took_s in enumerate((0.5, slowest_s), start=1):
        entry = arena.workers.entry(slot)
        entry.compute_ns, entry.steps = int(took_s * 1e9), 1
    assert one.claim() == (idle or Lease(0, 0))
    assert of.step_s(arena) == slowest_s
    assert strategy("hogwild").step_s(arena) == 0.5  # of which the fastest still begins one


@pytest.fixture
def team():
    """A round waits for two of three; rank 0 has decided on the first round."""
    of = strategy("sync", 3, backup_workers=1)
    with there(of, n_tickets=16) as arena:
        workers = [worker(arena, rank + 1, of, steps=3) for rank in range(3)]
        yield of, arena, workers, begin_step(workers[0])


def take_round(one):
    end_step(one, begun(one))


def take_rounds(one):
    while (lease := one.claim()) is not Idle.DONE:
        if isinstance(lease, Lease):
            one.read()
            end_step(one, lease, 1.0 + one.context.rank)


def test_a_round_is_the_mean_of_the_first_and_no_worker_waits_for_the_last(team):
    of, arena, (one, slow, other), lease = team
    late = begin_step(slow)
    threads = begin(lambda one: end_step(one, lease, 1.0), [one])
    end_step(other, begin_step(other), 3.0)
    join(threads)
    assert first(arena) == -LR * 2.0
    assert of.steps_done(arena, Ledger(arena)) == arena.counters.load("version") == 1
    outcome = end_step(slow, late, 9.0)
    assert (outcome.applied, outcome.is_stale, slow.counts_step()) == (False, True, False)
    assert first(arena) == -LR * 2.0
    assert Ledger(arena).state(0, 1) == TicketState.DONE  # its text is passed over


def test_updates_of_the_one_optimizer_state_are_counted_for_whoever_missed_some():
    rule, rounds = AdamW(weight_decay=0.0), 3
    of = strategy("sync", 3, backup_workers=1)
    with there(of, n_tickets=16, private=rule.state_segments) as arena:
        late, *others = (worker(arena, k + 1, of, steps=9, optimizer=rule) for k in range(3))
        lease = begin_step(late)
        for _ in range(rounds):
            in_threads(take_round, others)
            assert arena.workers.entry(1).opt_step == arena.counters.load("version")
        assert end_step(late, lease).is_stale
        in_threads(take_round, [others[0], late])
        # Of equal gradients each update is the learning rate, if its count is that of the moments.
        assert first(arena) == pytest.approx(-LR * (rounds + 1), rel=1e-5)
        assert arena.workers.entry(1).opt_step == arena.counters.load("version") == rounds + 1


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_worker_that_was_too_late_continues_and_leaves_no_ticket(team, checkpoint):
    of, arena, (one, slow, other), lease = team
    ledger, late = Ledger(arena), None if checkpoint else begin_step(slow)
    end = begin(lambda one: (end_step(one, lease), take_rounds(one)), [one])
    join([*end, *begin(take_rounds, [other])])
    if checkpoint:  # while the slow one evaluates
        arena.counters.store("pause", 1)
        position = ledger.position()
        assert slow.claim() is Idle.WAIT
        assert ledger.position() == position  # nothing moves while it is saved
        of.settle(arena, ledger)
        assert (ledger.watermark, arena.counters.load("steps")) == (9, 3)
        arena.counters.store("pause", 0)
    else:
        end_step(slow, late)
    while (lease := slow.claim()) is not Idle.DONE:
        assert lease is Idle.WAIT
    assert (of.steps_done(arena, ledger), ledger.watermark) == (3, 9)
    assert of.between_steps(arena)


EACH = 4  # sequences of a ticket


@pytest.fixture
def by_speed():
    of = strategy("sync", sync_shares="speed", batch_size=EACH)
    with there(of) as arena:
        yield of, arena, [worker(arena, slot, of) for slot in (1, 2)]


def note_speeds(words, *seconds):
    """Let each rank have taken this long for a sequence so far."""
    for rank, each_s in enumerate(seconds):
        words.set_real(("seconds", rank), each_s)


def rows(lease):
    """The numbers of a lease's sequences; those of a round are 0 to 7."""
    return [EACH * part.ticket + row for part in lease.parts for row in range(part.begin, part.end)]


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [((0.0, 1.0), [4, 4]), ((1.0, 1.2), [4, 4]), ((1.0, 2.9), [6, 2]), ((9.0, 1.0), [0, 8])],
)
def test_a_round_by_speed_has_the_mean_gradient_of_all_its_sequences(by_speed, seconds, counts):
    of, arena, workers = by_speed
    note_speeds(of.words(arena), *seconds)
    for slot in (1, 2):  # gradients that are not written have no effect
        arena.segment(f"grads.{slot}").fill(np.nan)
    leases = [begin_step(one) for one in workers]
    assert [len(rows(lease)) for lease in leases] == counts
    assert rows(leases[0]) + rows(leases[1]) == list(range(8))

    def end(k):
        own = rows(leases[k])
        grads = {"w": np.full(4, np.mean(own), np.float32)} if own else {}
        workers[k].write(grads, leases[k], BatchSize(len(own), len(own), len(own)))

    in_threads(end, (0, 1))
    assert first(arena) == pytest.approx(-LR * 3.5, rel=1e-6)
    assert [Ledger(arena).state(0, ticket) for ticket in (0, 1)] == [TicketState.DONE] * 2


def test_the_replacement_of_a_dead_worker_computes_the_same_sequences(by_speed):
    of, arena, workers = by_speed
    note_speeds(of.words(arena), 1.0, 2.9)
    leases = [one.claim() for one in workers]
    note_speeds(of.words(arena), 1.0, 1.0)  # measured anew since
    for one in workers:
        arena.workers.mark_dead(one.context.slot)
        Ledger(arena).reap(one.context.owner)
    assert [worker(arena, slot, of).claim() for slot in (1, 2)] == leases


def test_a_worker_without_a_sequence_gets_one_again(by_speed):
    of, arena, _ = by_speed
    note_speeds(of.words(arena), 1.0, 9.0)
    words, count = of.words(arena), 0
    shares = division.SharesBySpeed(words, 2, EACH)
    shares.publish()
    while words["sequences", 1] == 0:
        shares.note(1, samples=0, took_ns=0)
        shares.publish()
        count += 1
    assert 5 < count < 100


@each_of("seconds", [(1.0,), (1.0, 1.0), (1.0, 4.1), (0.3, 1.0, 0.7), (5.0, 1.0)])
@each_of("total", [1, 4, 7])
def test_no_other_division_of_sequences_is_done_sooner(seconds, total):
    def end_s(counts):
        return max(count * each_s for count, each_s in zip(counts, seconds, strict=True))

    counts = tuple(division.sequences(total, seconds))
    every = itertools.product(range(total + 1), repeat=len(seconds))
    assert sum(counts) == total
    assert end_s(counts) == min(end_s(other) for other in every if sum(other) == total)


@each_of("model", ["tiny", "160m"])
@each_of(("kind", "workers"), [(AdamW, 8), (Muon, 2), (Muon, 8), (Soap, 4)])
def test_parameters_are_divided_by_what_their_steps_cost(model, workers, kind):
    architecture = load_architecture(model)
    hidden = families.hidden_matrices(architecture)
    slots = list(plan(families.param_spec(architecture), max_workers=1, n_tickets=1).slots.values())
    costs = [kind(run=RunContext(hidden=hidden)).cost(slot) for slot in slots]
    shares = division.parameters(costs, workers)
    assert sorted(index for share in shares for index in share) == list(range(len(slots)))
    loads = [sum(costs[index] for index in share) for share in shares]
    # one parameter has one worker: embedding and head of 160m are a quarter of it each
    assert max(loads) <= 1.05 * max(sum(loads) / workers, *costs)
    orthogonalized = [s.name in hidden and kind is not AdamW for s in slots]
    assert [c > s.size for c, s in zip(costs, slots, strict=True)] == orthogonalized


W = {"w": ParamSpec("w", (3000,), "zeros")}  # every worker averages a part of it


def take(one):
    """A step by the gradient of a lease's batch."""
    lease = begin_step(one)
    end_step(one, lease, of_both(lease.ticket, float(one.context.backend.param_buffer[0])))


def test_workers_of_one_replica_train_the_same_copy():
    with runs.team("diloco", 4, replicas=2, average_every=1) as (arena, of, *workers):
        for each in workers:
            take(each)
        one, other = (first(arena, name) for name in of.replica_segments())
        # gradients 1 and 2 at 0 and -0.5; 3 and 4 likewise: the second sees the first's step
        assert one == pytest.approx(-LR * (1 + 2 - 0.25 * LR))
        assert other == pytest.approx(-LR * (3 + 4 - 0.25 * 3 * LR))
        of.settle(arena, Ledger(arena))
        assert first(arena) == pytest.approx(0.7 * 1.9 * (one + other) / 2, rel=1e-6)


def test_the_model_is_the_average_and_each_copy_can_be_evaluated_in_its_place():
    with runs.team("avg_runs") as (arena, of, one, _):
        take(one)
        for name, value in zip(of.own_copies(), (1.0, 3.0), strict=True):
            arena.segment(name)[...] = value
        arena.probe[...] = 7.0
        out = np.zeros_like(arena.params)
        of.load(arena, out, training=True)
        assert (out[0], first(arena)) == (2.0, 0.0)
        of.settle(arena, Ledger(arena))
        with of.each_copy(arena) as loads:
            seen = [(load(), first(arena))[1] for load in loads]
        assert (seen, first(arena)) == ([1.0, 3.0], 2.0)
        assert set(arena.probe.tolist()) == {7.0}  # no part of an average


@each_of(
    ("name", "models"),
    # once, at the end; at 4 and 8 of 9 steps, and at the end; the control variates, too
    [("avg_runs", 1), ("local_sgd", 2 + 1), ("scaffold", 2 * 2 + 1), ("diloco", 2 + 1)],
)
def test_a_network_would_carry_an_all_reduce_for_every_average(name, models):
    for workers in (1, 2):
        run = Run(strategy(name, workers, **({} if name == "avg_runs" else H)), W, of_both, 9)
        run.finish()
        assert run.of.network_bytes(run.arena, 9) == models * 2 * (workers - 1) * 4 * 3000
        run.arena.close()


@each_of(
    ("name", "workers", "before", "now"),
    [
        ("diloco", 2, H, {**H, "replicas": 1}),
        ("sim", 1, {"sim_staleness": "fixed:1"}, {"sim_staleness": "fixed:2"}),
    ],
)
def test_a_run_resumed_with_another_number_of_copies_begins_from_the_model(
    name, workers, before, now
):
    of, other = strategy(name, workers, **before), strategy(name, workers, **now)
    with new_arena(of) as arena, empty_arena(other, W) as resumed:
        state = {**of.state(arena), "ledger": Ledger(arena).position()}
        assert of.resume(resumed, Ledger(resumed), state) is not None
        assert other.resume(resumed, Ledger(resumed), state) is None


@each_of(("steps", "taken"), [(2, (6, 3)), (4, (6, 5)), (6, (7, 6))])
def test_a_run_resumed_from_unequal_steps_takes_its_budget_and_no_more(steps, taken):
    run = Run(strategy("avg_runs"), W, of_both, 40)
    for one in (*run.workers, *[run.workers[0]] * 5):  # the other is slow
        take(one)
    run.end()
    after = run.resumed(7 + steps)
    after.finish()
    assert after.done() == steps
    assert tuple(after.of.each(after.of.words(after.arena), "steps")) == taken
    run.arena.close()
    after.arena.close()


def test_the_learning_rate_of_a_resumed_run_counts_the_tokens_before_it_once():
    of = strategy("avg_runs")
    run = Run(of, W, of_both, 4)
    run.finish()
    with empty_arena(of, W) as resumed:
        resumed.counters.store("version", 4)
        of.begin(resumed, of.position(run.arena))
        budget = Budget(tokens=60, tokens_before=40)
        one = worker(resumed, 1, of, budget=budget, schedule=lambda progress, update: 1 - progress)
        assert one.lr() == pytest.approx(0.6)
