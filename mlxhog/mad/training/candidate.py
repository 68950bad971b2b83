"""Train one candidate on one task, and score it.

One worker trains in this process: its framework is imported once, and the memory of a run is freed
at its end. Several workers are the processes of `mlxhog train`, and a dead one is replaced; this
process scores their parameters while they train. All else is the same in both cases.
"""

import contextlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from mlxhog.arena import Arena
from mlxhog.arena.control import ControlCommand, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns, process_start_time
from mlxhog.arena.workers import MAX_NONFINITE, WorkerState
from mlxhog.backends.backend import Backend
from mlxhog.display.views import Tell
from mlxhog.errors import Diverged, WorkerFailed
from mlxhog.mad.run import Callbacks, CandidateRecord, RunConfig
from mlxhog.mad.tasks.dataset import best_achievable
from mlxhog.mad.training.evaluation import CandidateEvaluations, score
from mlxhog.mad.training.run_plan import CandidatePlan, make_run_plan
from mlxhog.models.families import init_params
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.strategies.context import Context, show_model
from mlxhog.training.supervisor.session import Session
from mlxhog.training.worker import loop as worker
from mlxhog.training.worker.steps import Gradients, Steps

Prepare = Callable[[Context], None]
"""Changes the backend or the optimizer of a worker before its first step."""


def train(
    config: RunConfig,
    *,
    callbacks: Callbacks = Callbacks(),  # noqa: B008  frozen
    rungs: tuple[int, ...] = (),
    worker_options: Mapping[str, object] | None = None,
    parallel: int = 1,
    on_end: Callable[[Arena], object] = lambda arena: None,
    tell: Tell = lambda message: None,
    prepare: Prepare = lambda context: None,
) -> CandidateRecord:
    """Train a candidate by its recipe, and score it on the task's validation rows.

    With one worker the numbers depend on `config` only, not on earlier or other runs.

    Args:
        config: the run.
        callbacks: called at steps, evaluations and rungs; see `Callbacks` for interrupts.
        rungs: steps at which the run is evaluated and `callbacks.should_prune` is called.
        worker_options: options of `TrainConfig`, see `mad.options.worker_options`.
        parallel: runs at once, which share the GPU's memory.
        on_end: called with the arena, at rest, before it is removed; not for a diverged run.
        tell: gets messages for the user: choices for this machine, dead workers.
        prepare: called with the context of the one worker before its first step.

    Raises:
        ConfigError: the configuration is impossible; no row has been drawn.
        EnvironmentLacks: a backend, or memory, is missing.
        WorkerFailed: one of several workers died too often; the message names its log.
    """
    plan = make_run_plan(config, worker_options, parallel=parallel)
    for note in plan.notes:
        tell(note)
    kind = CandidateRun if len(plan.workers) == 1 else SeveralWorkers
    with ExitStack() as stack:
        run = kind(plan, stack, callbacks, tell)
        evaluations = CandidateEvaluations(
            config, callbacks, rungs, limit=plan.limit, per_epoch=plan.per_epoch
        )
        try:
            status = run.execute(evaluations, prepare)
        except Diverged:
            status, run.ended_ns = "diverged", monotonic_ns()
        run.stop()
        if status != "diverged":
            on_end(run.arena)
        seconds, best = run.seconds(), best_achievable(plan.task_rows.dataset())
        return evaluations.record(status, run.steps_so_far(), seconds, best)


class CandidateRun(Session):
    """A run in progress, whose one worker is this process: steps, and evaluations between them."""

    backend: Backend
    plan: CandidatePlan

    def __init__(
        self, plan: CandidatePlan, stack: ExitStack, callbacks: Callbacks, tell: Tell
    ) -> None:
        """Create the arena, and fill it; this starts no worker."""
        super().__init__(plan, self._folder(stack), stack=stack)
        self._callbacks, self._tell, self._stack = callbacks, tell, stack
        for name, value in init_params(plan.model, plan.asked.seed).items():
            self.arena.param(name)[...] = value
        plan.strategy.begin(self.arena)
        self.begin(plan.limit)
        self.losses: list[float] = []  # finite ones since the last evaluation
        self.began_ns = self.ended_ns = 0

    def _folder(self, stack: ExitStack) -> Path:
        """The folder for the logs of workers."""
        return Path(os.devnull)

    def report(self, message: str) -> None:
        """Pass on a message about workers."""
        self._tell(message)

    def execute(self, evaluations: CandidateEvaluations, prepare: Prepare) -> str:
        """Train until the evaluations or the budget end the run; return its status."""
        try:
            self._start(prepare)
            self.began_ns = self.begin_training()
            due = evaluations.next_evaluation(0)
            while evaluations.status is None and self.steps_done() < self.plan.limit:
                self._advance()
                if due <= self.steps_so_far() < self.plan.limit:
                    self._evaluate(evaluations)
                    due = evaluations.next_evaluation(self.steps_so_far())
            self._score_the_end(evaluations)
        except KeyboardInterrupt:
            if self.began_ns:
                self._score_the_end(evaluations)
            return "interrupted"
        return evaluations.status or "done"

    def _score_the_end(self, evaluations: CandidateEvaluations) -> None:
        self._rest()
        if evaluations.last_step < self.steps_so_far():
            self._evaluate(evaluations)

    def steps_so_far(self) -> int:
        """Return the number of updates."""
        return self.arena.counters.load("steps")

    def steps_done(self) -> int:
        """Return the steps so far: no other worker can die within one."""
        return self.steps_so_far()

    def seconds(self) -> float:
        """Return the time from the first step to the last evaluation."""
        return max(0, self.ended_ns - self.began_ns) / 1e9

    def _evaluate(self, evaluations: CandidateEvaluations) -> None:
        """Score the validation rows at the present parameters, and record the evaluation."""
        self.drain()
        step, losses = self.steps_so_far(), self.losses
        self.losses = []  # of steps that end while the rows are scored, and later
        show_model(self.strategy, self.arena, self.backend)
        rows = self.plan.task_rows.dataset()
        scores = score(self.backend, rows, self.plan.model, beat=self._beat)
        self.ended_ns = monotonic_ns()
        mean = math.fsum(losses) / len(losses) if losses else None
        evaluations.add(step, self.seconds(), mean, scores)

    def _start_backend(self) -> None:
        """Load the framework of the first worker in this process."""
        job = self._job(1)
        with contextlib.redirect_stdout(sys.stderr):  # a worker process has a log
            self.backend = worker.start_backend(job, self.arena, job.kernels)
        self._stack.callback(self.backend.close)

    # -- the worker of this process --------------------------------------------------------------

    def _start(self, prepare: Prepare) -> None:
        """Make the workers and the backend, which scores, ready for the first step."""
        pid, job = os.getpid(), self._job(1)
        self._entry = self.arena.workers.acquire_slot(1, pid, process_start_time(pid))
        self._start_backend()
        context = worker.make_context(job, self.arena, self._entry, self.backend)
        prepare(context)
        self._entry.state = WorkerState.RUNNING
        gradients = Gradients(job, self.arena, self._entry, self.backend)
        self._steps = Steps(job, context, Ring(self.arena.segment("ring.1")), gradients)

    def _advance(self) -> None:
        """Let the workers train for a moment."""
        self._steps.step()
        if math.isfinite(self._entry.loss):
            self.losses.append(self._entry.loss)
        if self._entry.nonfinite_in_row >= min(MAX_NONFINITE, self.plan.limit):
            raise Diverged("the gradients are not finite")
        self._beat()

    def _beat(self) -> None:
        """Give a sign of life."""
        self._callbacks.beat()

    def _rest(self) -> None:
        """Wait until every step in progress has ended."""

    def drain(self) -> None:
        """Do nothing: each step reads the worker itself."""


class SeveralWorkers(CandidateRun):
    """A run of several worker processes."""

    poll_s = 0.02

    def _folder(self, stack: ExitStack) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="mlxhog-mad-"))

        def remove(kind: type[BaseException] | None, *_: object) -> None:
            if kind is not WorkerFailed:  # its message names a log
                shutil.rmtree(folder)

        stack.push(remove)
        return folder

    def _start(self, prepare: Prepare) -> None:
        slots = range(1, len(self.plan.workers) + 1)
        self._rings = [Ring(self.arena.segment(f"ring.{slot}")) for slot in slots]
        self.spawn()
        self._start_backend()
        self.until(self.ready, PhaseStatus(Phase.STARTING))

    def steps_done(self) -> int:
        """Return the finished steps, exact even after deaths of workers."""
        return Session.steps_done(self)

    def _rest(self) -> None:
        self.command(ControlCommand.DRAIN)
        self.until(self.is_drained, PhaseStatus(Phase.FINISHING))
        self.settle()

    def _advance(self) -> None:
        self.poll()

    _beat = _advance

    def poll(self, doing: PhaseStatus | None = None) -> None:
        """Watch the workers for a moment, and give a sign of life."""
        super().poll(doing)
        self._callbacks.beat()

    def drain(self) -> None:
        """Read the records of the workers."""
        for record in (record for ring in self._rings for record in ring.drain()):
            if record["kind"] == RecordKind.STEP and math.isfinite(record["loss"]):
                self.losses.append(float(record["loss"]))
