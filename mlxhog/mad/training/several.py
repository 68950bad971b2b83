"""Train a candidate with several worker processes: Hogwild, or any other strategy, inside one run.

The workers, their arena and their supervisor are those of `mlxhog train`; a dead worker is
replaced. One of them scores the held-out rows now and then, while the others go on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.records import Kind, Ring
from mlxhog.data.ledger import Ledger
from mlxhog.errors import Diverged, WorkerFailed
from mlxhog.mad import tasks
from mlxhog.mad.result import RunResult
from mlxhog.mad.training import score_job
from mlxhog.mad.training.course import Course
from mlxhog.mad.training.mean_loss import MeanLoss
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.mad.training.scoring import Scores
from mlxhog.mad.watch import Watch
from mlxhog.strategies import course as strategy_course
from mlxhog.training.supervisor import Supervisor

POLL_S = 0.02

Tell = Callable[[str], None]


def run(
    plan: RunPlan,
    course: Course,
    watch: Watch,
    keep: Callable[[Arena], None],
    tell: Tell,
) -> RunResult:
    """Train until the course ends, `watch` interrupts, or the gradients stay non-finite.

    Args:
        plan: of several workers.
        course: of this run, at its beginning.
        watch: see `alone.run`; it also beats while workers start and finish.
        keep: likewise.
        tell: given what the user should know of workers.

    Raises:
        WorkerFailed: a worker died more often than allowed; its log is kept, and named.
        ConfigError, EnvironmentLacks: a worker cannot start here.
    """
    logs = Path(tempfile.mkdtemp(prefix="mlxhog-mad-"))
    try:
        with ExitStack() as stack:
            found = _Run(plan, course, watch, tell, logs, stack).execute(keep)
    except WorkerFailed:
        raise
    except BaseException:
        shutil.rmtree(logs)
        raise
    shutil.rmtree(logs)
    return found


class _Run:
    """The run while it lives."""

    def __init__(
        self,
        plan: RunPlan,
        course: Course,
        watch: Watch,
        tell: Tell,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        self.plan, self.course, self.watch, self.tell = plan, course, watch, tell
        write, run_id = plan.writers.write, plan.config.key()
        self.arena = stack.enter_context(Arena.create(plan.layout, write=write, run_id=run_id))
        plan.fill(self.arena)
        self.ledger = Ledger(self.arena, on_torn=plan.options.on_torn)
        strategy_course.limit_steps(self.arena, self.ledger, plan.limit)
        self.supervisor = Supervisor(
            self.arena,
            self.ledger,
            plan.workers,
            plan.options,
            logs,
            partial(plan.job, self.arena, logs),
        )
        stack.callback(self.supervisor.kill)
        self.scores = Scores(0.0, 0.0)
        self._rings = [Ring(self.arena.segment(f"ring.{k + 1}")) for k in range(len(plan.workers))]
        scores = self.arena.segment(score_job.SEGMENT)
        self._left = [score_job.Scores(scores, k + 1) for k in range(len(plan.workers))]
        self._has_val = bool(tasks.resolve(plan.config.task, plan.config.settings).val_rows)
        self._loss = MeanLoss()
        self._asked_at: int | None = None  # restarts so far, while an evaluation is under way
        self._began_ns = self._ended_ns = 0

    def execute(self, keep: Callable[[Arena], None]) -> RunResult:
        status = "interrupted"
        try:
            self.supervisor.start()
            self._until(self.supervisor.ready)
            self._train()
            status = self.course.status or "done"
        except KeyboardInterrupt:
            pass
        except Diverged:
            status = "diverged"
        if status != "diverged" and self._began_ns:
            status = self._score_at_rest(status)
        self.supervisor.stop()
        if status != "diverged":
            keep(self.arena)
        seconds = (self._ended_ns - self._began_ns) / 1e9
        return self.course.result(status, self._steps(), max(0.0, seconds), self.scores)

    def _train(self) -> None:
        """Let workers step until the course or the budget ends."""
        self._began_ns = monotonic_ns()
        self.arena.counters.store("start_ns", self._began_ns)
        self.supervisor.command(Command.TRAIN)
        due = self.course.next_evaluation(0)
        while self.course.status is None and not self._budget_is_used():
            self._poll()
            if self._asked_at is None and due <= self._steps() < self.course.limit:
                self._ask()
                due = self.course.next_evaluation(self._steps())

    def _budget_is_used(self) -> bool:
        """Whether every step is over for good."""
        workers = len(self.plan.workers)
        done = strategy_course.steps_done(self.plan.options, workers, self.arena, self.ledger)
        return done >= self.course.limit

    def _score_at_rest(self, status: str) -> str:
        """Let workers finish their steps and score what they came to; returns the status."""
        try:
            self.supervisor.command(Command.REST)
            self._until(self.supervisor.resting)
            workers = len(self.plan.workers)
            strategy_course.settle(self.plan.options, workers, self.arena, self.ledger)
            self._drain()
            if not self.course.curve or self.course.curve[-1].step < self._steps():
                self._ask()
                self.supervisor.command(Command.EVALUATE)
                self._until(lambda: self._asked_at is None)
        except Diverged:
            return "diverged"
        return status

    def _steps(self) -> int:
        return self.arena.counters.load("steps")

    def _ask(self) -> None:
        """Ask the next worker that finishes a step to score the held-out rows."""
        counters = self.arena.counters
        counters.store("eval_asked", counters.load("eval_taken") + 1)
        self._asked_at = self.supervisor.restarts

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._poll()

    def _poll(self) -> None:
        self.supervisor.poll(POLL_S)
        for message in self.supervisor.messages:
            self.tell(message)
        self.supervisor.messages.clear()
        self._drain()
        if self._asked_at is not None and self.supervisor.restarts > self._asked_at:
            self._ask()  # the one that died may have been at it
        self.watch.beat()

    def _drain(self) -> None:
        """Take in what workers have recorded."""
        left = [scores.take() for scores in self._left]
        for record in (record for ring in self._rings for record in ring.drain()):
            if record["kind"] == Kind.STEP:
                self._loss.add(float(record["loss"]), int(record["t_ns"]))
        for score in left:  # when the steps before it are known
            if score is not None:
                self._take(score)

    def _take(self, record: np.void) -> None:
        """Take in an evaluation; one that was asked for twice counts once."""
        self._asked_at = None
        step = int(record["steps"])
        if self.course.curve and step <= self.course.curve[-1].step:
            return
        values = [float(record[name]) for name in ("acc_token", "acc_macro")]
        if self._has_val:
            values += [float(record[name]) for name in ("val_token", "val_macro")]
        self.scores = Scores(*values)
        self._ended_ns = int(record["t_ns"])
        seconds = (self._ended_ns - self._began_ns) / 1e9
        self.course.take(step, seconds, self._loss.pop(self._ended_ns), self.scores)
