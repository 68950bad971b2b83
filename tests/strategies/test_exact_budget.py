"""All workers die together, the run is saved and resumed: its steps are the budget, exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.config.budget import Budget
from mlxhog.data.ledger import Ledger
from mlxhog.strategies import Idle, Lease, Strategy, course, segments, sync
from mlxhog.strategies.avg_runs import AvgRuns
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.round_robin import RoundRobin
from mlxhog.strategies.switch import SyncThenHogwild
from mlxhog.strategies.sync import Sync
from tests.strategies import test_avg_runs, test_hogwild_claims, test_round_robin, test_sync_deaths
from tests.strategies.deaths import die_together, lines
from tests.strategies.test_sync import context

STEPS = 6
WORKERS = 2


@dataclass(frozen=True)
class Kind:
    """A strategy, and where its workers die."""

    name: str
    make: Callable[[Any], Strategy]
    dies_in: type
    methods: tuple[str, ...]
    async_after: float = 0.0

    @property
    def config(self) -> Any:
        return SimpleNamespace(
            strategy=self.name, async_after=self.async_after, average_every=2, blocks="all",
            clip=0.0, read="snapshot", predict="none", seq_len=10,
        )  # fmt: skip


KINDS = [
    Kind("hogwild", Hogwild, Hogwild, test_hogwild_claims.METHODS),
    Kind("sync", Sync, Sync, test_sync_deaths.METHODS),
    Kind("round_robin", RoundRobin, RoundRobin, test_round_robin.METHODS),
    Kind("avg_runs", AvgRuns, AvgRuns, test_avg_runs.METHODS),
    Kind("hogwild", SyncThenHogwild, Sync, ("_decision", "_leave", "write"), 0.5),
    Kind("hogwild", SyncThenHogwild, Hogwild, ("claim", "write"), 0.5),
]


class Run:
    """One call to `train`, as far as strategies and the ledger see it."""

    def __init__(self, kind: Kind, steps: int) -> None:
        self.kind, self.steps = kind, steps
        parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
        params = {"a": parameter, "b": parameter}
        extra = segments(kind.config, WORKERS, len(params))
        self.arena = Arena.create(plan(params, max_workers=WORKERS, n_tickets=8, extra=extra))
        self.ledger = Ledger(self.arena)

    def begin(self, kept: dict[str, Any] | None = None) -> None:
        course.begin(self.kind.config, WORKERS, self.arena, kept)
        course.limit_steps(self.arena, self.ledger, self.steps)
        self.arena.counters.store("command", Command.TRAIN)
        self.workers = [self.worker(slot + 1) for slot in range(WORKERS)]

    def worker(self, slot: int) -> Strategy:
        opt_step = self.arena.workers.entry(slot).opt_step
        found = context(self.arena, slot)
        found.entry.opt_step = opt_step
        found.config, found.workers = self.kind.config, WORKERS
        found.step_limit, found.budget = self.steps, Budget(steps=self.steps)
        found.backend = SimpleNamespace(  # type: ignore[assignment]
            inbox=np.zeros_like(self.arena.params), refresh=lambda: None
        )
        return self.kind.make(found)

    def work(self, worker: Strategy) -> None:
        """What a worker does until the run is over."""
        while (lease := worker.claim()) is not Idle.DONE or self.done() < self.steps:
            if isinstance(lease, Lease):
                worker.read()
                gradient = np.ones(4, np.float32)
                worker.write({"a": gradient, "b": gradient}, lease, samples=1)
                if worker.counts_step():
                    self.arena.counters.add("steps", 1)

    def done(self) -> int:
        return course.steps_done(self.kind.config, WORKERS, self.arena, self.ledger)

    def finish(self) -> None:
        threads = [threading.Thread(target=self.work, args=(w,), daemon=True) for w in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    def reap(self) -> None:
        """What the supervisor does first when all are dead."""
        for slot in range(1, WORKERS + 1):
            self.arena.workers.mark_dead(slot)
            self.ledger.reap(self.arena.workers.entry(slot).incarnation)

    def successors_hold_still(self) -> bool:
        """Whether those who replace the dead take nothing while a checkpoint is taken."""
        self.arena.counters.store("pause", 1)
        return all(isinstance(self.worker(k + 1).claim(), Idle) for k in range(WORKERS))

    def bury(self) -> None:
        """What is done when the dead are not replaced, up to the checkpoint."""
        self.reap()
        course.settle(self.kind.config, WORKERS, self.arena, self.ledger)

    def resumed(self) -> Run:
        """The next call, which takes the rest of the budget."""
        kind, old = self.kind, self.arena
        new = Run(kind, self.steps - old.counters.load("steps"))
        kept = course.position(kind.config, WORKERS, old)
        position = self.ledger.position()
        over = kind.async_after and sync.is_over(old.segment("sync.words"), WORKERS)
        if over:
            sync.pass_over(new.arena.segment("sync.words"), WORKERS)
        elif kept is None and kind.make is not Hogwild:
            position = {**position, "done": []}
        new.ledger.restore(position)
        counters = new.arena.counters
        counters.store("version", old.counters.load("version"))
        counters.store("first_ticket", position["epoch"] * new.ledger.n + position["watermark"])
        for segment in course.kept_segments(kind.config, WORKERS):
            new.arena.segment(segment)[...] = old.segment(segment)
        for slot in range(1, WORKERS + 1):
            new.arena.workers.entry(slot).opt_step = old.workers.entry(slot).opt_step
        new.begin(kept)
        return new


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.make.__name__}-{k.dies_in.__name__}")
def test_steps_before_and_after_a_resume_are_the_budget_wherever_all_workers_died(
    kind: Kind,
) -> None:
    reached = still = 0
    for method, number in lines(kind.dies_in, kind.methods):
        run = Run(kind, STEPS)
        run.begin()
        victim, other = run.workers if number % 2 else reversed(run.workers)
        reached += die_together(
            partial(run.work, victim), partial(run.work, other), kind.dies_in, (method, number),
            times=2,
        )  # fmt: skip
        run.reap()
        if course.between_steps(kind.config, WORKERS, run.arena):
            assert run.successors_hold_still(), f"{method}+{number}"
            still += 1
        run.bury()
        before = run.arena.counters.load("steps")
        where = f"{method}+{number}, {before} steps before"
        assert before == run.done() <= STEPS, where
        if before < STEPS:
            after = run.resumed()
            after.finish()
            after.bury()
            assert before + after.arena.counters.load("steps") == STEPS, where
            check(kind, after, where)
            after.arena.close()
        run.arena.close()
    assert reached >= 5
    assert still >= 1


def check(kind: Kind, run: Run, where: str) -> None:
    """No batch was passed over or done twice, where a step is a batch."""
    if kind.dies_in is Sync:
        return
    if kind.async_after == 0:
        assert run.ledger.watermark == STEPS, where
        assert run.ledger.position()["done"] == [], where
    if kind.make in (RoundRobin, AvgRuns):
        assert run.arena.counters.load("version") == STEPS, where
        opt_steps = [run.arena.workers.entry(slot).opt_step for slot in (1, 2)]
        assert opt_steps == [STEPS / 2, STEPS / 2], where
