"""Train a candidate in this process, with one worker.

The same arena, optimizer, strategy and steps as in a worker process. A process may do so any number
of times: its framework is imported once, and what a run allocates goes with the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxhog.arena import Arena, records
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns, process_start_time
from mlxhog.arena.workers import State
from mlxhog.config.budget import Budget
from mlxhog.mad.run import Callbacks, RunResult
from mlxhog.mad.training.evaluation import Evaluations, MeanLoss, interval
from mlxhog.mad.training.rows import Scores, score
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.strategies import Context
from mlxhog.training import worker
from mlxhog.training.steps import Steps

SLOT = 1
NO_DIRECTORY = Path(os.devnull)
"""A worker in this process writes no log."""

Prepare = Callable[[Context], None]
"""Changes what a worker computes or writes with, before its first step."""

_starting = threading.Lock()  # of several runs in threads, as `batched` has them


def no_preparation(context: Context) -> None:
    """Change nothing."""


def run(
    plan: RunPlan,
    evaluations: Evaluations,
    callbacks: Callbacks,
    on_end: Callable[[Arena], None],
    prepare: Prepare = no_preparation,
) -> RunResult:
    """Train until the evaluations end it, `callbacks` interrupt, or the gradients stay non-finite.

    Args:
        plan: of one worker.
        evaluations: of this run, still empty.
        callbacks: their `beat` may raise KeyboardInterrupt, once to end the run after one more
            evaluation, twice to leave at once.
        on_end: called with the arena at the end of a run whose parameters mean something.
        prepare: called with the worker's context before the first step.
    """
    with single_worker(plan, prepare) as (arena, steps):
        result = _Run(plan, evaluations, callbacks, steps).execute()
        if result.status != "diverged":
            on_end(arena)
        return result


@contextlib.contextmanager
def single_worker(
    plan: RunPlan, prepare: Prepare = no_preparation
) -> Iterator[tuple[Arena, Steps]]:
    """Yield an arena of one slot, and the steps of its worker: this process."""
    with Arena.create(plan.layout, write=plan.writers.write, run_id=plan.config.key()) as arena:
        plan.fill(arena)
        pid = os.getpid()
        entry = arena.workers.acquire_slot(pid, process_start_time(pid), slot=SLOT)
        job = plan.job(
            arena, SLOT, entry.incarnation, Budget(steps=plan.limit), plan.limit, NO_DIRECTORY
        )
        # What a worker process says goes to its log.
        with _starting, contextlib.redirect_stdout(sys.stderr):
            context = worker.make_context(job, arena, entry)
        try:
            prepare(context)
            arena.counters.store("command", Command.TRAIN)
            entry.state = State.RUNNING
            yield arena, Steps(job, context, records.Ring(arena.segment(f"ring.{SLOT}")))
        finally:
            context.backend.close()


class _Run:
    """The run while it lives."""

    def __init__(
        self, plan: RunPlan, evaluations: Evaluations, callbacks: Callbacks, steps: Steps
    ) -> None:
        self.plan, self.evaluations, self.callbacks, self.steps = (
            plan,
            evaluations,
            callbacks,
            steps,
        )
        self.context = steps.context
        self.rows = plan.task_rows.dataset()
        self.scores = Scores(0.0, 0.0)
        self._loss = MeanLoss()
        self._began_ns = 0

    def execute(self) -> RunResult:
        evaluations = self.evaluations
        self.context.arena.counters.store("start_ns", monotonic_ns())
        self._began_ns = monotonic_ns()
        try:
            status = self._train()
        except KeyboardInterrupt:
            status = "interrupted"
            if not evaluations.curve or evaluations.curve[-1].step < self._done():
                self._evaluate()
        return evaluations.result(status, self._done(), self._seconds(), self.scores)

    def _train(self) -> str:
        """Step and evaluate until something ends the run; returns its status."""
        entry, most = self.context.entry, self.plan.options.max_nonfinite
        while self.evaluations.status is None:
            due = self.evaluations.next_evaluation(self._done())
            while self._done() < due:
                self.steps.step()
                self._loss.add(entry.loss)
                if entry.nonfinite_in_row >= min(most, self.evaluations.limit):
                    return "diverged"
                self.callbacks.beat()
            self._evaluate()
        return self.evaluations.status

    def _done(self) -> int:
        return self.context.entry.steps

    def _seconds(self) -> float:
        return (monotonic_ns() - self._began_ns) / 1e9

    def _evaluate(self) -> None:
        self.context.copy_to_inbox()
        self.scores = score(
            self.context.backend, self.rows, self.plan.model, beat=self.callbacks.beat
        )
        self.evaluations.take(self._done(), self._seconds(), self._loss.pop(), self.scores)


STEPS = 5
MOST_S = 10.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step, of one evaluation, and of a run that takes every step it may."""

    step_s: float
    evaluation_s: float
    total_s: float


def estimate(plan: RunPlan) -> Estimate | None:
    """Train a few steps for the clock; None where several workers would have to be started."""
    if len(plan.workers) > 1:
        return None
    with single_worker(plan) as (_, steps):
        steps.step()  # sets up what is set up once
        began, taken = monotonic_ns(), 0
        while taken < min(STEPS, plan.limit) and monotonic_ns() - began < MOST_S * 1e9:
            steps.step()
            taken += 1
        step_s = (monotonic_ns() - began) / 1e9 / taken
        began = monotonic_ns()
        steps.context.copy_to_inbox()
        score(steps.context.backend, plan.task_rows.dataset(), plan.model, beat=lambda: None)
        evaluation_s = (monotonic_ns() - began) / 1e9
    every = interval(plan.config.protocol, plan.per_epoch)
    total_s = plan.limit * step_s + -(-plan.limit // every) * evaluation_s
    return Estimate(step_s, evaluation_s, total_s)
