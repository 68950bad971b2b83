"""What every strategy keeps: it is its paper, whoever dies, wherever it is resumed or paused."""

import threading
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlxhog.arena.ledger import Ledger
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.models.registry import load_architecture
from mlxhog.models.spec import ParamSpec
from mlxhog.strategies import Collect, Hogwild, Idle, build
from mlxhog.strategies.hogwild import HogwildWorker
from mlxhog.strategies.in_order import InOrder
from mlxhog.strategies.local import Local
from mlxhog.strategies.sync import Sync
from tests.pairs import each_of
from tests.strategies import references
from tests.strategies.deaths import dies, dies_with, places
from tests.strategies.runs import Run, new_arena, step, strategy, worker
from tests.threads import begin, join, wait_until

STEPS = 7
PARAMS = {
    "a": ParamSpec("a", (2500,), "zeros"),  # two workers divide it where they share by floats
    "b": ParamSpec("b", (500,), "zeros"),
    "c": ParamSpec("c", (8,), "zeros"),
}


def of_both(ticket, at):
    """Differs between batches, and depends on where it is taken."""
    return 1.0 + ticket + 0.25 * at


def of_ticket(ticket, at):
    return 1.0 + ticket


def one(ticket, at):
    return 1.0


@dataclass(frozen=True)
class Case:
    """A strategy with options, its reference, and the gradients for which that is exact.

    Attributes:
        torn: another reference, for the step that was torn.
    """

    name: str
    options: dict[str, Any]
    reference: Any
    gradient: Any = of_both
    workers: int = 2
    torn: Any = None

    def run(self, steps=STEPS):
        of = strategy(self.name, self.workers, **self.options)
        return Run(of, PARAMS, self.gradient, steps)

    def models(self, of, steps, *, torn):
        """The possible values of a parameter; a torn step may have no effect."""
        without = range(steps) if torn else []
        references = (self.reference, self.torn or self.reference)
        cases = ((by, k) for by in references for k in [None, *without])
        return {float(by(of, self.gradient, steps, k)) for by, k in cases}


H = {"average_every": 2}
IN_ORDER = {"determinism": "rounds", "steps": STEPS}
CASES = {
    "hogwild": Case("hogwild", {}, references.added, of_ticket),
    "hogwild, overlap": Case("hogwild", {"overlap": True}, references.added, of_ticket),
    "hogwild, own": Case("hogwild", {"predict": "own"}, references.added, of_ticket),
    "serial": Case("serial", {}, references.in_order, workers=1),
    "locked": Case("locked", {}, references.added, of_ticket),
    "aig": Case("aig", {}, references.added, of_ticket),
    "async_ps": Case("async_ps", {}, references.added, of_ticket),
    "ssp": Case("ssp", {"slack": 1}, references.added, of_ticket),
    "sync": Case("sync", {}, references.rounds),
    "sync, three": Case("sync", {}, references.rounds, workers=3),
    "sync by speed": Case(
        "sync", {"sync_shares": "speed", "batch_size": 4}, references.rounds, one
    ),
    "backup_workers": Case("sync", {"backup_workers": 1}, references.rounds, one, workers=3),
    "collect": Case("collect", {}, references.rounds),
    "collect, alone": Case("collect", {}, references.rounds, workers=1),
    "collect, in order": Case("collect", IN_ORDER, references.rounds, workers=3),
    "round_robin": Case("round_robin", {}, references.in_order),
    "round_robin, three": Case("round_robin", {}, references.in_order, workers=3),
    "sim": Case("sim", {}, references.in_order, workers=1),
    "sim uniform": Case("sim", {"sim_staleness": "uniform:0:3"}, references.in_order, workers=1),
    "sim speed": Case("sim", {"sim_staleness": "speed:1,1,3"}, references.in_order, workers=1),
    "avg_runs": Case("avg_runs", {}, references.local),
    "local_sgd": Case("local_sgd", H, references.local),
    "local_sgd, alone": Case("local_sgd", H, references.local, workers=1),
    "local_sgd, three": Case("local_sgd", H, references.local, workers=3),
    "local_sgd post": Case("local_sgd", {**H, "local_after": 4}, references.local),
    "fedprox": Case("fedprox", {**H, "prox_mu": 0.5}, references.local),
    "fedprox decoupled": Case(
        "fedprox", {**H, "prox_mu": 0.5, "prox": "decoupled"}, references.local,
        torn=references.torn,
    ),
    "scaffold": Case("scaffold", H, references.local, torn=references.torn),
    "scaffold, three": Case("scaffold", H, references.local, workers=3, torn=references.torn),
    "diloco": Case("diloco", H, references.local),
}  # fmt: skip


def each(names):
    """One test for each of these cases."""
    return pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in names])


every_case = each(CASES)
VARIANTS = (
    "sync, three", "collect, alone", "collect, in order", "round_robin, three", "sim uniform",
    "sim speed", "local_sgd, alone",
    "local_sgd, three", "local_sgd post", "scaffold, three",
)  # fmt: skip
BASIC = [name for name in CASES if name not in VARIANTS]
"""Those that reach every line of a strategy; the variants run the same lines with other numbers."""


def check(run, case, where=None, *, steps=STEPS, before=0):
    """Every count is exact; so are the parameters, unless a step was torn."""
    of, ledger, counters = run.of, run.ledger, run.arena.counters
    torn = ledger.position()["torn"]
    assert before + run.done() == before + counters.load("steps") == steps, where
    assert torn <= 1 + (before > 0), where
    taken = [run.arena.workers.entry(slot).opt_step for slot in range(1, of.slots + 1)]
    version = counters.load("version")
    if isinstance(of, InOrder | Local):
        assert version == sum(taken) == steps, where
    elif type(of) is Collect:
        assert version == taken[0] == steps, where
    elif type(of) is Sync:
        assert version == steps, where
        assert taken[0] == steps, where
        assert of.backup_workers or taken == [steps] * of.workers, where
    else:
        assert steps - torn <= version <= steps, where
    in_rounds = isinstance(of, Sync | Collect)
    if in_rounds and not getattr(of, "backup_workers", 0):
        assert counters.load("tokens") == counters.load("steps") * of.tokens_per_step, where
    each = of.workers if in_rounds else 1
    assert ledger.watermark == each * steps or before, where
    assert ledger.position()["done"] == [], where
    values = set(run.model().values())
    assert values <= case.models(of, steps, torn=torn), where


def test_a_strategy_in_a_run_has_facts_of_the_run_and_not_its_options():
    of = strategy(overlap=True, predict="own", clip=0.25, seed=3)
    assert (of.run.overlap, of.run.clip, of.run.seed, of.run.prediction) == (True, 0.25, 3, "own")
    assert not any(isinstance(value, TrainConfig) for value in vars(of).values())


@every_case
def test_it_is_its_sequential_reference_bit_for_bit(case):
    run = case.run()
    run.finish()
    check(run, case)
    if isinstance(run.of, Local):
        own = [run.arena.segment(name)[0] for name in run.of.replica_segments()]
        assert own == references.Local(run.of, case.gradient, STEPS).own
    run.arena.close()


def lines_of(case):
    """Lines that a worker executes, each with the number of times until it may die there."""
    run = case.run()
    first, *others = run.workers
    threads = begin(partial(run.work, victim=first), others)
    counts = places(partial(run.work, first))
    join(threads)
    run.arena.close()
    return [(place, min(2, n)) for place, n in sorted(counts.items())]


DEATHS = Counter()
"""Cases with a death at a line."""


def name_of(place):
    return f"{Path(place[0]).name}:{place[1]}"


@pytest.mark.slow
@each(BASIC)
def test_a_death_at_any_line_costs_at_most_one_partially_applied_step_and_stops_no_other(case):
    """The dead worker is replaced, and the run goes on to its end.

    A line that several strategies share is a place of death in three of them.
    """
    if case.name in ("sync", "collect", "scaffold") and case.gradient is of_both:
        case = replace(case, gradient=of_ticket)  # a torn part leaves other gradients alone
    reached, lines = 0, [line for line in lines_of(case) if DEATHS[line[0]] < 3]
    DEATHS.update(place for place, _ in lines)
    for number, (place, times) in enumerate(lines):
        run = case.run()
        rank = number % case.workers
        slot, victim = rank + 1, run.workers[rank]
        others = [w for w in run.workers if w is not victim]
        rest = begin(partial(run.work, victim=victim), others)
        if dies(partial(run.work, victim), place, times):
            reached += 1
            run.mark_dead(slot)
            run.reap(slot)
            run.work(run.worker(slot))
        join(rest, what=f"a worker beside a death at {name_of(place)}")
        run.end()
        check(run, case, name_of(place))
        run.arena.close()
    assert reached >= len(lines) / 2, (reached, len(lines))


def test_a_synchronous_step_that_is_applied_counts_wherever_its_worker_dies_for_good():
    """One worker, at each line of its second step."""
    of = strategy("sync", 1)

    def scene(act):
        with new_arena(of) as arena:
            ledger, one = Ledger(arena), worker(arena, 1, of)
            step(one)
            result = act(partial(step, one))
            arena.workers.mark_dead(1)
            ledger.reap(one.context.owner)
            of.settle(arena, ledger)
            counts = [arena.counters.load(name) for name in ("steps", "version")]
            return result, [ledger.count_done(), *counts, arena.workers.entry(1).opt_step]

    for place in scene(places)[0]:
        died, counts = scene(partial(dies, place=place))
        assert died
        assert len(set(counts)) == 1, (name_of(place), counts)


@pytest.mark.slow
@each(name for name in BASIC if CASES[name].workers < 3)
def test_steps_before_and_after_a_resume_are_the_budget_wherever_all_workers_died(case):
    """At every third line; a single death, above, comes at each."""
    reached = still = 0
    for number, (place, times) in enumerate(lines_of(case)[::3]):
        run, dead = case.run(), threading.Event()
        workers = run.workers if number % 2 else run.workers[::-1]
        victim, others = workers[0], workers[1:]
        rest = begin(partial(dies_with, partial(run.work, victim=victim), dead), others)
        if dies(partial(run.work, victim), place, times):
            reached += 1
            run.mark_dead(victim.context.slot)
            dead.set()
        where = name_of(place)
        join(rest, what=f"a worker beside a death at {where}")
        for slot in run.taken:
            run.reap(slot)
        if run.of.between_steps(run.arena):  # then successors hold still
            run.arena.counters.store("pause", 1)
            assert all(isinstance(run.worker(slot).claim(), Idle) for slot in run.taken), where
            still += 1
        run.end()
        before, torn = run.arena.counters.load("steps"), run.ledger.position()["torn"]
        assert before == run.done() <= STEPS, where
        if before < STEPS:
            after = run.resumed(STEPS)
            after.finish()
            assert after.done() == after.arena.counters.load("steps") == STEPS - before, where
            if not (torn or isinstance(run.of, Sync | Collect)):
                check(after, case, where, before=before)
            after.arena.close()
        run.arena.close()
    assert reached >= 5
    assert still >= 1


@each(name for name, case in CASES.items() if case.gradient is of_both)  # else timing decides
def test_a_run_that_is_resumed_after_any_step_equals_one_that_never_stopped(case):
    for stop in range(1, STEPS):
        run = case.run(stop)
        run.finish()
        after = run.resumed(STEPS)
        after.finish()
        assert set(after.model().values()) == case.models(run.of, STEPS, torn=0), stop
        assert after.arena.counters.load("version") == STEPS
        after.arena.close()
        run.arena.close()


@every_case
def test_a_pause_quiesces_every_worker_and_changes_nothing(case):
    run, paused = case.run(), threading.Event()

    def gradient(ticket, at):
        if ticket > 1 and not paused.is_set():
            run.arena.counters.store("pause", 1)
            paused.set()
        return case.gradient(ticket, at)

    run.gradient = gradient
    threads = begin(run.work, run.workers)
    wait_until(paused.is_set)
    run.idle.clear()
    wait_until(run.all_ask_in_vain)
    assert run.of.between_steps(run.arena)
    run.end()
    before, done = run.arena.params.copy(), run.done()
    assert done < STEPS
    run.idle.clear()
    wait_until(run.all_ask_in_vain)
    assert (run.arena.params == before).all()
    assert run.done() == done
    run.arena.counters.store("pause", 0)
    join(threads)
    run.end()
    check(run, case)
    run.arena.close()


def test_every_strategy_has_a_case():
    assert {case.name for case in CASES.values()} == set(STRATEGIES.known())


@each_of(
    ("name", "workers", "options", "message"),
    [
        ("sync", 2, {"backup_workers": 2}, "backup_workers is 2"),
        ("sync", 1, {"backup_workers": 1}, "backup_workers is 1"),
        ("sync", 25, {"backup_workers": 1}, "backup_workers is for runs of up to 24"),
        ("sim", 2, {}, "simulates its workers in one process"),
        ("hogwild", 6, {"blocks": "disjoint"}, "take at most 5 workers"),
        ("local_sgd", 2, {"average_every": 6, "steps": 11}, "12 steps before their first average"),
        ("diloco", 2, {"average_every": 6, "tokens": 110}, "take strategy avg_runs"),
        ("diloco", 4, {"replicas": 2, "determinism": "rounds", "steps": 99}, "2 workers of each"),
        ("diloco", 6, {"replicas": 4}, "does not divide 6 workers; take one of 1, 2, 3, 6"),
    ],
)
def test_workers_that_a_strategy_cannot_have_are_refused(name, workers, options, message):
    with pytest.raises(ConfigError, match=message):
        strategy(name, workers, **options).check(load_architecture("tiny"))


@dataclass(frozen=True, kw_only=True)
class OwnHogwild(Hogwild):
    """A user's, which has its own workers."""

    name = "own_hogwild"

    class Worker(HogwildWorker):
        """That of a user."""


@each_of(
    ("options", "refusal"),
    [
        ({}, None),
        ({"determinism": "record"}, "determinism=record has workers of its own.*own_hogwild"),
        ({"determinism": "replay"}, "determinism=replay has workers of its own.*own_hogwild"),
        ({"blocks": "disjoint"}, "blocks=disjoint has workers of its own.*own_hogwild"),
    ],
)
def test_workers_of_a_user_s_strategy_are_used_or_it_is_refused(options, refusal):
    own = OwnHogwild(blocks=options.pop("blocks", "all"))
    options = TrainConfig(strategy=own, **options)
    if refusal is None:
        built = build(options, 2)
        assert (type(built), built.Worker) == (OwnHogwild, OwnHogwild.Worker)
        return
    with pytest.raises(ConfigError, match=f"{refusal}; leave it out, or take strategy=hogwild"):
        build(options, 2)
