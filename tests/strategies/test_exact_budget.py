"""All workers die together, the run is saved and resumed: its steps are the budget, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.config.budget import Budget
from mlxhog.strategies import Idle, Lease, build
from mlxhog.strategies.aig import AigWorker
from mlxhog.strategies.async_ps import AsyncPSWorker
from mlxhog.strategies.backup_workers import QuorumWorker
from mlxhog.strategies.hogwild import HogwildWorker
from mlxhog.strategies.local import LocalWorker
from mlxhog.strategies.locked import LockedWorker
from mlxhog.strategies.round_robin import RoundRobinWorker
from mlxhog.strategies.ssp import SSPWorker
from mlxhog.strategies.sync import SyncWorker
from tests.strategies import test_hogwild_claims, test_local, test_round_robin, test_sync_deaths
from tests.strategies.deaths import die_together, let_others_run, lines
from tests.strategies.local_runs import OPTIONS
from tests.strategies.test_sync import LR, chosen, context
from tests.threads import in_threads

STEPS = 6
WORKERS = 2
LEAD = 2
"""Steps that a lock-free worker may be ahead of a living victim, which so takes at least two."""


@dataclass(frozen=True)
class Kind:
    """A strategy, and where its workers die."""

    name: str
    dies_in: type
    methods: tuple[str, ...]
    async_after: float = 0.0
    backup_workers: int = 0

    @property
    def strategy(self):
        numbers = {
            **OPTIONS, "async_after": self.async_after, "backup_workers": self.backup_workers,
            "slack": 1,
        }  # fmt: skip
        config = TrainConfig(
            strategy=chosen(self.name, numbers), clip=0.0, lr=LR, seq_len=10, batch_size=1,
            optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0,
        )  # fmt: skip
        return build(config, WORKERS)

    @property
    def may_starve(self):
        """Whether one worker may take all steps, since no worker waits for another."""
        return issubclass(self.dies_in, HogwildWorker) and self.async_after == 0


KINDS = [
    Kind("hogwild", HogwildWorker, test_hogwild_claims.METHODS),
    Kind("sync", SyncWorker, test_sync_deaths.METHODS),
    Kind("round_robin", RoundRobinWorker, test_round_robin.METHODS),
    Kind("locked", LockedWorker, ("read", "write")),
    Kind("aig", AigWorker, ("write",)),
    Kind("async_ps", AsyncPSWorker, ("read", "write")),
    Kind("ssp", SSPWorker, ("claim", "_enter", "_wait_at_gate", "_landed")),
    Kind("sync", QuorumWorker, ("claim", "write", "_pass_over"), backup_workers=1),
    Kind("local_sgd", LocalWorker, test_local.METHODS),
    Kind("avg_runs", LocalWorker, ("claim", "_lease", "write")),
    Kind("scaffold", LocalWorker, ("claim", "write", *test_local.MORE_LINES["scaffold"])),
    Kind("diloco", LocalWorker, ("claim", "write", *test_local.MORE_LINES["diloco"])),
    Kind("hogwild", SyncWorker, ("_decision", "_leave", "write"), 0.5),
    Kind("hogwild", HogwildWorker, ("claim", "write"), 0.5),
]


class Run:
    """One call to `train`, as far as strategies and the ledger see it."""

    def __init__(self, kind, steps):
        self.kind, self.steps, self.strategy = kind, steps, kind.strategy
        parameter = SimpleNamespace(shape=(4,), init="zeros", kind="dense")
        params = {"a": parameter, "b": parameter}
        extra = self.strategy.segments(len(params))
        self.arena = Arena.create(plan(params, max_workers=WORKERS, n_tickets=8, extra=extra))
        self.ledger = Ledger(self.arena)
        self.taken = dict.fromkeys(range(1, WORKERS + 1), 0)  # steps, by slot
        self.is_dead = False  # the victim

    def begin(self, kept=None):
        self.strategy.begin(self.arena, kept)
        self.strategy.limit_steps(self.arena, self.ledger, self.steps)
        self.arena.counters.store("command", Command.TRAIN)
        self.workers = [self.worker(slot + 1) for slot in range(WORKERS)]

    def worker(self, slot):
        opt_step = self.arena.workers.entry(slot).opt_step
        ctx = context(self.arena, slot, self.strategy)
        ctx.entry.opt_step = opt_step
        ctx.step_limit, ctx.budget = self.steps, Budget(steps=self.steps)
        ctx.backend = SimpleNamespace(inbox=np.zeros_like(self.arena.params), refresh=lambda: None)
        return self.strategy.worker(ctx)

    def work(self, worker, victim=None):
        """What a worker does until the run is over; a victim beside it is left steps to die in."""
        while True:
            if victim is not None and self._is_ahead(worker, victim):
                let_others_run()
                continue
            lease = worker.claim()
            if isinstance(lease, Lease):
                worker.read()
                gradient = np.ones(4, np.float32)
                worker.write({"a": gradient, "b": gradient}, lease, samples=1)
                if worker.counts_step():
                    self.arena.counters.add("steps", 1)
                self.taken[worker.context.slot] += 1
            elif lease is Idle.DONE and self.done() >= self.steps:
                return
            else:
                let_others_run()

    def _is_ahead(self, worker, victim):
        """Whether a lock-free worker would take steps that a living victim needs."""
        lead = self.taken[worker.context.slot] - self.taken[victim.context.slot]
        is_over = self.is_dead or self.done() >= self.steps
        return self.kind.may_starve and lead >= LEAD and not is_over

    def done(self):
        return self.strategy.steps_done(self.arena, self.ledger)

    def finish(self):
        in_threads(self.work, self.workers)

    def mark_dead(self, worker):
        """What the supervisor does first when a worker is dead: its locks may be taken over."""
        self.arena.workers.mark_dead(worker.context.slot)
        self.is_dead = True

    def reap(self):
        """What the supervisor does first when all are dead."""
        for slot in range(1, WORKERS + 1):
            self.arena.workers.mark_dead(slot)
            self.ledger.reap(self.arena.workers.entry(slot).incarnation)

    def successors_hold_still(self):
        """Whether the workers that replace the dead take nothing while a checkpoint is taken."""
        self.arena.counters.store("pause", 1)
        return all(isinstance(self.worker(k + 1).claim(), Idle) for k in range(WORKERS))

    def end(self):
        """What is done up to the checkpoint when the dead are not replaced."""
        self.reap()
        self.strategy.settle(self.arena, self.ledger)

    def resumed(self):
        """The next call, which takes the rest of the budget."""
        kind, old = self.kind, self.arena
        new = Run(kind, self.steps - old.counters.load("steps"))
        state = {**self.strategy.state(old), "ledger": self.ledger.position()}
        new.arena.counters.store("version", old.counters.load("version"))
        kept = new.strategy.resume(new.arena, new.ledger, state)
        for segment in new.strategy.kept_segments():
            new.arena.segment(segment)[...] = old.segment(segment)
        for slot in range(1, WORKERS + 1):
            new.arena.workers.entry(slot).opt_step = old.workers.entry(slot).opt_step
        new.begin(kept)
        return new


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", KINDS, ids=lambda k: f"{type(k.strategy).__name__}-{k.dies_in.__name__}"
)
def test_steps_before_and_after_a_resume_are_the_budget_wherever_all_workers_died(kind):
    reached = still = 0
    for method, number in lines(kind.dies_in, kind.methods):
        run = Run(kind, STEPS)
        run.begin()
        victim, other = run.workers if number % 2 else reversed(run.workers)
        reached += die_together(
            partial(run.work, victim), partial(run.work, other, victim), kind.dies_in,
            (method, number), times=1 if method == "_enter" else 2,
            reap=partial(run.mark_dead, victim),
        )  # fmt: skip
        run.reap()
        if run.strategy.between_steps(run.arena):
            assert run.successors_hold_still(), f"{method}+{number}"
            still += 1
        run.end()
        before = run.arena.counters.load("steps")
        where = f"{method}+{number}, {before} steps before"
        assert before == run.done() <= STEPS, where
        if before < STEPS:
            after = run.resumed()
            after.finish()
            after.end()
            assert before + after.arena.counters.load("steps") == STEPS, where
            check(kind, after, where)
            after.arena.close()
        run.arena.close()
    assert reached >= 5
    assert still >= 1


def check(kind, run, where):
    """No batch was passed over or done twice, where a step is a batch."""
    if kind.dies_in in (SyncWorker, QuorumWorker):
        return
    if kind.async_after == 0:
        assert run.ledger.watermark == STEPS, where
        assert run.ledger.position()["done"] == [], where
    if kind.dies_in in (RoundRobinWorker, LocalWorker):
        assert run.arena.counters.load("version") == STEPS, where
        opt_steps = [run.arena.workers.entry(slot).opt_step for slot in (1, 2)]
        assert opt_steps == [STEPS / 2, STEPS / 2], where
