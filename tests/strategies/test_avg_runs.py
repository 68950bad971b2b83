"""Independent runs that are averaged, in one process."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.data.ledger import Ledger
from mlxhog.strategies import Idle, Lease, Strategy, avg_runs
from mlxhog.strategies.avg_runs import AvgRuns, AvgRunsWorker
from tests.strategies.deaths import die_and_be_replaced, let_others_run, lines
from tests.strategies.test_sync import LR, context, strategy

pytestmark = pytest.mark.slow

STEPS = 9
FLOATS = 3000  # every worker averages a part of them
METHODS = (
    "claim", "_lease", "_is_due", "_all_reached", "_take_part", "_average_share", "_take_average",
    "read", "write", "_record", "_apply", "_take_in",
)  # fmt: skip


def runs(workers: int = 2, every: int | None = None) -> Strategy:
    return strategy(AvgRuns, workers, seq_len=10, average_every=every)


def new_arena(workers: int = 2, every: int | None = None) -> Arena:
    """An arena whose one parameter begins at 0, before its workers start."""
    parameter = SimpleNamespace(shape=(FLOATS,), init="zeros", kind="dense")
    extra = runs(workers).segments(1)
    layout = plan({"w": parameter}, max_workers=workers, n_tickets=8, extra=extra)
    arena = Arena.create(layout)
    runs(workers, every).begin(arena)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(
    arena: Arena, slot: int, *, workers: int = 2, steps: int = STEPS, every: int | None = None
) -> AvgRunsWorker:
    found = context(arena, slot, runs(workers, every))
    found.step_limit, found.budget = steps, Budget(steps=steps)
    found.backend = SimpleNamespace(  # type: ignore[assignment]
        inbox=np.zeros_like(arena.params), refresh=lambda: None
    )
    return AvgRunsWorker(found)


def gradient(ticket: int, at: float) -> float:
    """Of a batch: differs between batches, and depends on where it is taken."""
    return 1.0 + ticket + 0.25 * at


def take_steps(worker: AvgRunsWorker) -> None:
    """Steps until none is left, and its part in the averagings of the others."""
    entry, n = worker.context.entry, worker.context.ledger.n
    entry.phase = Phase.DATA
    while (lease := worker.claim()) is not Idle.DONE or not all_done(worker):
        if isinstance(lease, Lease):
            worker.read()
            found = gradient(lease.epoch * n + lease.ticket, worker.context.backend.inbox[0])
            worker.write({"w": np.full(FLOATS, found, np.float32)}, lease, samples=1)
        else:
            let_others_run()


def all_done(worker: AvgRunsWorker) -> bool:
    """Whether every worker has taken its steps; the others may want this one in an averaging."""
    context = worker.context
    return context.strategy.steps_done(context.arena, context.ledger) == STEPS


def expected(
    workers: int, every: int | None, without: int | None = None
) -> tuple[np.float32, list[np.float32]]:
    """The average and the copies, by sequential runs; one step may be lost."""
    copies = [np.float32(0.0)] * workers
    own = [0] * workers
    averagings = 0
    while sum(own) < STEPS:
        for rank in range(workers):
            ticket = own[rank] * workers + rank
            mark = None if every is None else every * (averagings + 1)
            if ticket >= STEPS or own[rank] == mark:
                continue
            step = np.float32(0.0 if ticket == without else LR)
            copies[rank] -= step * np.float32(gradient(ticket, float(copies[rank])))
            own[rank] += 1
        if every and min(own) == every * (averagings + 1) and min(own) * workers < STEPS:
            copies, averagings = [mean(copies)] * workers, averagings + 1
    return mean(copies), copies


def mean(copies: list[np.float32]) -> np.float32:
    total = copies[0]
    for copy in copies[1:]:
        total = np.float32(total + copy)
    return np.float32(total * np.float32(1.0 / len(copies)))


def run(arena: Arena, workers: int, every: int | None) -> None:
    """All steps of all workers, to the average."""
    for thread in together(arena, list(range(1, workers + 1)), workers, every):
        thread.join(30)
        assert not thread.is_alive()
    runs(workers).settle(arena, Ledger(arena))


def together(
    arena: Arena, slots: list[int], workers: int, every: int | None
) -> list[threading.Thread]:
    made = [worker(arena, slot, workers=workers, every=every) for slot in slots]
    threads = [threading.Thread(target=take_steps, args=(one,), daemon=True) for one in made]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("every", [None, 1, 2, 100])
def test_each_worker_trains_its_own_copy_on_its_own_share_and_the_end_is_their_average(
    workers: int, every: int | None
) -> None:
    with new_arena(workers, every) as arena:
        run(arena, workers, every)
        average, copies = expected(workers, every)
        assert arena.param("w").tolist() == [average] * FLOATS
        found = [arena.segment(name)[0] for name in runs(workers).kept_segments()]
        assert found == copies
        assert Ledger(arena).watermark == STEPS
        assert arena.counters.load("version") == arena.counters.load("steps") == STEPS


def test_an_average_has_no_part_in_the_lost_update_probe() -> None:
    with new_arena() as arena:
        arena.probe[...] = 7.0
        run(arena, 2, 2)
        assert arena.probe.tolist() == [7.0] * arena.probe.size


def test_what_is_evaluated_while_training_is_the_average_of_the_copies() -> None:
    with new_arena() as arena:
        for name, value in zip(runs().copies(), (1.0, 3.0), strict=True):
            arena.segment(name)[...] = value
        out = np.zeros_like(arena.params)
        avg_runs.average(arena, 2, out)
        slot = arena.layout.slots["w"]
        assert out[slot.offset : slot.offset + slot.size].tolist() == [2.0] * FLOATS
        assert arena.param("w").tolist() == [0.0] * FLOATS


def test_each_copy_can_be_evaluated_in_the_place_of_the_average_which_then_returns() -> None:
    with new_arena() as arena:
        run(arena, 2, None)
        average, copies = expected(2, None)
        with runs().each_copy(arena) as loads:
            for load, copy in zip(loads, copies, strict=True):
                load()
                assert arena.param("w").tolist() == [copy] * FLOATS
        assert arena.param("w").tolist() == [average] * FLOATS


def test_an_average_that_is_worse_than_a_copy_is_warned_of() -> None:
    assert runs().warning(2.0, [2.1, 2.2]) is None
    assert runs().warning(2.0, []) is None
    warning = runs().warning(2.5, [2.6, 2.25])
    assert warning is not None
    assert "2.500" in warning
    assert "worker 2 alone 2.250" in warning
    assert "--average-every" in warning


def test_a_resumed_run_goes_on_with_every_workers_own_copy() -> None:
    with new_arena(2, 2) as arena, new_arena(2, 2) as resumed:
        stop_after(arena, own_steps=(4, 2))
        kept: Any = runs(2, 2).position(arena)
        assert kept["steps"] == [2, 2]  # the mark: worker 1 waits there for an averaging
        runs(2).settle(arena, Ledger(arena))
        for name in runs().copies():
            resumed.segment(name)[...] = arena.segment(name)
        resumed.counters.store("version", arena.counters.load("version"))
        Ledger(resumed).restore(Ledger(arena).position())
        runs(2, 2).begin(resumed, kept)
        made = [worker(resumed, slot, steps=STEPS - 4, every=2) for slot in (1, 2)]
        threads = [threading.Thread(target=finish, args=(one,), daemon=True) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        runs(2).settle(resumed, Ledger(resumed))
        assert resumed.param("w").tolist() == [expected(2, 2)[0]] * FLOATS
        assert resumed.counters.load("version") == STEPS
        assert resumed.counters.load("steps") == STEPS - 4


def test_the_step_size_of_a_resumed_run_counts_the_tokens_before_it_once() -> None:
    kept = {"steps": [2, 2], "tokens": [20, 20], "updates": [2, 2]}
    rest = {"first_ticket": 4, "averagings": 0, "every": None}
    with new_arena(2) as arena:
        arena.counters.store("version", 4)
        runs(2).begin(arena, {**kept, **rest})
        one = worker(arena, 1)
        one.context.budget = Budget(tokens=60, tokens_before=40)
        one.context.schedule = lambda progress, update: 1.0 - progress
        assert one._lr() == pytest.approx(0.6)


def stop_after(arena: Arena, own_steps: tuple[int, int]) -> None:
    """Let each worker step so often, if no averaging holds it up."""
    for slot, steps in zip((1, 2), own_steps, strict=True):
        one = worker(arena, slot, every=2)
        for _ in range(steps):
            lease = one.claim()
            if isinstance(lease, Lease):
                one.read()
                found = gradient(lease.ticket, one.context.backend.inbox[0])
                one.write({"w": np.full(FLOATS, found, np.float32)}, lease, samples=1)


def finish(worker: AvgRunsWorker) -> None:
    n = worker.context.ledger.n
    while runs().steps_done(worker.context.arena, worker.context.ledger) < STEPS - 4:
        lease = worker.claim()
        if isinstance(lease, Lease):
            worker.read()
            found = gradient(lease.epoch * n + lease.ticket, worker.context.backend.inbox[0])
            worker.write({"w": np.full(FLOATS, found, np.float32)}, lease, samples=1)
        else:
            let_others_run()


def test_a_step_that_was_torn_when_its_run_was_killed_is_passed_over_after_the_resume() -> None:
    with new_arena() as arena:
        one = worker(arena, 1)
        ledger = one.context.ledger
        assert ledger.claim_exact(0, 0, 99)
        ledger.begin_apply(0, 0, 99)
        ledger.finish(0, 0, 99)  # by a worker of which this arena knows nothing
        one.context.entry.opt_step = 7
        assert one.claim() is Idle.WAIT
        assert one.claim() == Lease(0, 2)
        assert one.context.entry.opt_step == 7


@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_at_any_line_changes_nothing_but_a_torn_step(rank: int) -> None:
    unreached = []
    for method, number in lines(AvgRunsWorker, METHODS):
        with new_arena(2, 2) as arena:
            make = partial(worker, arena, rank + 1, every=2)
            victim = make()
            (thread,) = together(arena, [2 - rank], 2, 2)
            died = die_and_be_replaced(victim, (method, number), make, take_steps)
            thread.join(30)
            assert not thread.is_alive(), f"nobody went on after a death at {method}+{number}"
            runs(2).settle(arena, Ledger(arena))
            check(arena, f"{method}+{number}")
        if not died:
            unreached.append((method, number))
    reached = len(list(lines(AvgRunsWorker, METHODS))) - len(unreached)
    assert reached >= 50, unreached


def check(arena: Arena, where: str) -> None:
    """Every count is exact; so are the parameters, unless a step was torn."""
    assert arena.counters.load("version") == STEPS, where
    assert runs().steps_done(arena, Ledger(arena)) == STEPS, where
    assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [5, 4], where
    ledger = Ledger(arena)
    assert ledger.watermark == STEPS, where
    torn = ledger.position()["torn"]
    assert torn <= 1, where
    lost: list[int | None] = [None, *range(STEPS)] if torn else [None]
    assert arena.param("w").tolist() in [[expected(2, 2, one)[0]] * FLOATS for one in lost], where
