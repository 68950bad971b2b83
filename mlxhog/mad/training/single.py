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
from mlxhog.mad.run import RunResult, Watch
from mlxhog.mad.training.evaluation import Course, MeanLoss, interval
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.mad.training.scoring import Scores, score
from mlxhog.strategies import Context
from mlxhog.training import worker
from mlxhog.training.steps import Steps

SLOT = 1
NO_DIRECTORY = Path(os.devnull)
"""A worker in this process writes no log."""

Prepare = Callable[[Context], None]
"""Changes what a worker computes or writes with, before its first step."""

_starting = threading.Lock()  # of several runs in threads, as `batched` has them


def as_it_is(context: Context) -> None:
    """Change nothing."""


def run(
    plan: RunPlan,
    course: Course,
    watch: Watch,
    keep: Callable[[Arena], None],
    prepare: Prepare = as_it_is,
) -> RunResult:
    """Train until the course ends, `watch` interrupts, or the gradients stay non-finite.

    Args:
        plan: of one worker.
        course: of this run, at its beginning.
        watch: its `beat` may raise KeyboardInterrupt, once to end the run after one more
            evaluation, twice to leave at once.
        keep: called with the arena at the end of a run whose parameters mean something.
        prepare: called with the worker's context before the first step.
    """
    with seat(plan, prepare) as (arena, steps):
        result = _Run(plan, course, watch, steps).execute()
        if result.status != "diverged":
            keep(arena)
        return result


@contextlib.contextmanager
def seat(plan: RunPlan, prepare: Prepare = as_it_is) -> Iterator[tuple[Arena, Steps]]:
    """An arena of one slot, and its worker: this process."""
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

    def __init__(self, plan: RunPlan, course: Course, watch: Watch, steps: Steps) -> None:
        self.plan, self.course, self.watch, self.steps = plan, course, watch, steps
        self.context = steps.context
        self.rows = plan.drawn.dataset()
        self.scores = Scores(0.0, 0.0)
        self._loss = MeanLoss()
        self._began_ns = 0

    def execute(self) -> RunResult:
        course = self.course
        self.context.arena.counters.store("start_ns", monotonic_ns())
        self._began_ns = monotonic_ns()
        try:
            status = self._train()
        except KeyboardInterrupt:
            status = "interrupted"
            if not course.curve or course.curve[-1].step < self._done():
                self._evaluate()
        return course.result(status, self._done(), self._seconds(), self.scores)

    def _train(self) -> str:
        """Step and evaluate until something ends the run; returns its status."""
        entry, most = self.context.entry, self.plan.options.max_nonfinite
        while self.course.status is None:
            due = self.course.next_evaluation(self._done())
            while self._done() < due:
                self.steps.step()
                self._loss.add(entry.loss)
                if entry.nonfinite_in_row >= min(most, self.course.limit):
                    return "diverged"
                self.watch.beat()
            self._evaluate()
        return self.course.status

    def _done(self) -> int:
        return self.context.entry.steps

    def _seconds(self) -> float:
        return (monotonic_ns() - self._began_ns) / 1e9

    def _evaluate(self) -> None:
        self.context.copy_to_inbox()
        self.scores = score(self.context.backend, self.rows, self.plan.model, beat=self.watch.beat)
        self.course.take(self._done(), self._seconds(), self._loss.pop(), self.scores)


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
    with seat(plan) as (_, steps):
        steps.step()  # sets up what is set up once
        began, taken = monotonic_ns(), 0
        while taken < min(STEPS, plan.limit) and monotonic_ns() - began < MOST_S * 1e9:
            steps.step()
            taken += 1
        step_s = (monotonic_ns() - began) / 1e9 / taken
        began = monotonic_ns()
        steps.context.copy_to_inbox()
        score(steps.context.backend, plan.drawn.dataset(), plan.model, beat=lambda: None)
        evaluation_s = (monotonic_ns() - began) / 1e9
    every = interval(plan.config.protocol, plan.per_epoch)
    total_s = plan.limit * step_s + -(-plan.limit // every) * evaluation_s
    return Estimate(step_s, evaluation_s, total_s)
