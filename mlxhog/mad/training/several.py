"""Train a candidate with several worker processes: Hogwild, or any other strategy, inside one run.

The workers, their arena and their supervisor are those of `mlxhog train`; a dead worker is
replaced. One of them scores the held-out rows now and then, while the others go on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.records import Kind, Ring
from mlxhog.config.budget import Budget
from mlxhog.errors import Diverged, WorkerFailed
from mlxhog.mad import tasks
from mlxhog.mad.run import Callbacks, RunResult
from mlxhog.mad.training.evaluation import Evaluations, MeanLoss
from mlxhog.mad.training.rows import SCORES_SEGMENT, Scores, ScoreSlot
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.training.session import Session

Tell = Callable[[str], None]


def run(
    plan: RunPlan,
    evaluations: Evaluations,
    callbacks: Callbacks,
    on_end: Callable[[Arena], None],
    tell: Tell,
) -> RunResult:
    """Train until the evaluations end it, `callbacks` interrupt, or the gradients stay non-finite.

    Args:
        plan: of several workers.
        evaluations: of this run, still empty.
        callbacks: see `single.run`; they also beat while workers start and finish.
        on_end: likewise.
        tell: given what the user should know of workers.

    Raises:
        WorkerFailed: a worker died more often than allowed; its log is kept, and named.
        ConfigError, EnvironmentLacks: a worker cannot start here.
    """
    logs = Path(tempfile.mkdtemp(prefix="mlxhog-mad-"))
    try:
        with ExitStack() as stack:
            result = _Run(plan, evaluations, callbacks, tell, logs, stack).execute(on_end)
    except WorkerFailed:
        raise
    except BaseException:
        shutil.rmtree(logs)
        raise
    shutil.rmtree(logs)
    return result


class _Run(Session):
    """The run while it lives."""

    poll_s = 0.02

    def __init__(
        self,
        plan: RunPlan,
        evaluations: Evaluations,
        callbacks: Callbacks,
        tell: Tell,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        super().__init__(plan, logs, stack=stack, run_id=plan.config.key())
        self.plan, self.evaluations, self.callbacks, self.tell = plan, evaluations, callbacks, tell
        plan.fill(self.arena)
        self.begin(Budget(steps=plan.limit), plan.limit)
        self.scores = Scores(0.0, 0.0)
        self._rings = [Ring(self.arena.segment(f"ring.{k + 1}")) for k in range(len(plan.workers))]
        scores = self.arena.segment(SCORES_SEGMENT)
        self._left = [ScoreSlot(scores, k + 1) for k in range(len(plan.workers))]
        self._has_val = bool(tasks.resolve(plan.config.task, plan.config.settings).val_rows)
        self._loss = MeanLoss()
        self._asked_at: int | None = None  # restarts so far, while an evaluation is under way
        self._began_ns = self._ended_ns = 0

    def execute(self, on_end: Callable[[Arena], None]) -> RunResult:
        status = "interrupted"
        try:
            self.supervisor.start()
            self.until(self.supervisor.ready, "starting workers")
            self._train()
            status = self.evaluations.status or "done"
        except KeyboardInterrupt:
            pass
        except Diverged:
            status = "diverged"
        if status != "diverged" and self._began_ns:
            status = self._score_at_rest(status)
        self.supervisor.stop()
        if status != "diverged":
            on_end(self.arena)
        seconds = (self._ended_ns - self._began_ns) / 1e9
        return self.evaluations.result(status, self._steps(), max(0.0, seconds), self.scores)

    def _train(self) -> None:
        """Let workers step until the evaluations or the budget end the run."""
        self._began_ns = self.train()
        due = self.evaluations.next_evaluation(0)
        while self.evaluations.status is None and self.steps_done() < self.evaluations.limit:
            self.poll()
            if self._asked_at is None and due <= self._steps() < self.evaluations.limit:
                self._ask()
                due = self.evaluations.next_evaluation(self._steps())

    def _score_at_rest(self, status: str) -> str:
        """Let workers finish their steps and score what they came to; returns the status."""
        try:
            self.supervisor.command(Command.REST)
            self.until(self.supervisor.resting, "finishing the last steps")
            self.settle()
            self.drain()
            if not self.evaluations.curve or self.evaluations.curve[-1].step < self._steps():
                self._ask()
                self.supervisor.command(Command.EVALUATE)
                self.until(lambda: self._asked_at is None, "scoring")
        except Diverged:
            return "diverged"
        return status

    def _steps(self) -> int:
        return self.arena.counters.load("steps")

    def _ask(self) -> None:
        """Ask the next worker that finishes a step to score the held-out rows."""
        self.ask("eval")
        self._asked_at = self.supervisor.restarts

    def report(self, message: str) -> None:
        """Tell what the user should know of workers."""
        self.tell(message)

    def poll(self, doing: str | None = None) -> None:
        """Watch workers for a moment; an evaluation that died with its worker is asked for anew."""
        super().poll(doing)
        if self._asked_at is not None and self.supervisor.restarts > self._asked_at:
            self._ask()
        self.callbacks.beat()

    def drain(self) -> None:
        """Take in what workers have recorded."""
        scores = [slot.take() for slot in self._left]
        for record in (record for ring in self._rings for record in ring.drain()):
            if record["kind"] == Kind.STEP:
                self._loss.add(float(record["loss"]), int(record["t_ns"]))
        for score in scores:  # when the steps before it are known
            if score is not None:
                self._take(score)

    def _take(self, record: np.void) -> None:
        """Take in an evaluation; one that was asked for twice counts once."""
        self._asked_at = None
        step = int(record["steps"])
        if self.evaluations.curve and step <= self.evaluations.curve[-1].step:
            return
        values = [float(record[name]) for name in ("acc_token", "acc_macro")]
        if self._has_val:
            values += [float(record[name]) for name in ("val_token", "val_macro")]
        self.scores = Scores(*values)
        self._ended_ns = int(record["t_ns"])
        seconds = (self._ended_ns - self._began_ns) / 1e9
        self.evaluations.take(step, seconds, self._loss.pop(self._ended_ns), self.scores)
