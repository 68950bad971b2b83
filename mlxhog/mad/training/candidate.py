"""Train one candidate on one task, score it, and save it as a checkpoint.

One worker trains in this process: its framework is imported once, and the memory of a run is freed
at its end. Several workers are the processes of `mlxhog train`: a dead one is replaced, and one of
them scores the held-out rows at times while the others train. Arena, optimizer, strategy, steps and
the course of a run are the same in both cases.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.control import Command, RecordKind, Ring
from mlxhog.arena.process import monotonic_ns, process_start_time
from mlxhog.arena.workers import MAX_NONFINITE, State
from mlxhog.base import plain_json
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import contents, saving
from mlxhog.config.budget import Budget
from mlxhog.errors import Diverged, WorkerFailed
from mlxhog.mad.run import Callbacks, RunConfig, RunResult
from mlxhog.mad.tasks.dataset import ceiling
from mlxhog.mad.training.evaluation import (
    SCORES,
    Accuracies,
    Evaluations,
    MeanLoss,
    ScoreJobs,
    interval,
    score,
    take_scores,
)
from mlxhog.mad.training.run_plan import RunPlan, make_run_plan
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.views import Tell
from mlxhog.strategies import Context
from mlxhog.training import worker
from mlxhog.training.session import Session
from mlxhog.training.steps import Gradients, Steps

Prepare = Callable[[Context], None]
"""Changes the backend or the optimizer of a worker before its first step."""


def no_preparation(context: Context) -> None:
    """Change nothing."""


def train(
    config: RunConfig,
    *,
    callbacks: Callbacks | None = None,
    rungs: tuple[int, ...] = (),
    worker_options: Mapping[str, object] | None = None,
    parallel: int = 1,
    on_end: Callable[[Arena], None] = lambda arena: None,
    tell: Tell = lambda message: None,
    prepare: Prepare = no_preparation,
) -> RunResult:
    """Train a candidate by its protocol, and score it on the task's held-out rows.

    With one worker the numbers depend on `config` only, not on earlier or other runs.

    Args:
        config: the run.
        callbacks: called at steps, evaluations and rungs. Its `beat` may raise KeyboardInterrupt:
            the run is evaluated once more and is "interrupted"; a second one leaves this function.
        rungs: steps at which the run is evaluated and `callbacks.should_prune` is called.
        worker_options: options of `TrainConfig`, see `mad.options.worker_options`.
        parallel: runs at once, which share the GPU's memory.
        on_end: called with the arena, at rest, before it is removed; not for a diverged run.
        tell: gets messages for the user: choices for this machine, dead workers.
        prepare: called with the context of the one worker before its first step.

    Returns:
        The result; its status is "done", "diverged", "pruned" or "interrupted".

    Raises:
        ConfigError: the configuration is impossible; no row has been drawn.
        EnvironmentLacks: a backend, or memory, is missing.
        WorkerFailed: one of several workers died too often; the message names its log.
    """
    plan = make_run_plan(config, worker_options, parallel=parallel)
    for note in plan.notes:
        tell(note)
    callbacks = callbacks or Callbacks()
    with ExitStack() as stack:
        run: TrainingRun
        if len(plan.workers) == 1:
            run = OneWorker(plan, stack, callbacks, rungs, prepare)
        else:
            run = SeveralWorkers(plan, stack, callbacks, rungs, tell)
        result = run.execute(on_end)
    return replace(result, ceiling=ceiling(plan.task_rows.dataset()))


class TrainingRun(Session):
    """A run in progress: steps, evaluations between them, and one at the end.

    A subclass defines the start of its workers, their work between two looks (`poll`), and the
    scoring.
    """

    def __init__(
        self,
        plan: RunPlan,
        stack: ExitStack,
        callbacks: Callbacks,
        rungs: tuple[int, ...],
        logs: Path = Path(os.devnull),
    ) -> None:
        super().__init__(plan, logs, stack=stack)
        self.plan, self.callbacks = plan, callbacks
        plan.fill(self.arena)
        self.begin(Budget(steps=plan.limit), plan.limit)
        self.evaluations = Evaluations(
            plan.asked.protocol,
            limit=plan.limit,
            per_epoch=plan.per_epoch,
            callbacks=callbacks,
            rungs=rungs,
        )
        self.scores = Accuracies(0.0, 0.0)
        self.losses = MeanLoss()
        self.began_ns = self.ended_ns = 0

    def execute(self, on_end: Callable[[Arena], None]) -> RunResult:
        """Train until the evaluations or the budget end the run, or it diverges."""
        try:
            status = self._train_and_score()
        except Diverged:
            status = "diverged"
        self.stop()
        if status != "diverged":
            on_end(self.arena)
        seconds = max(0, self.ended_ns - self.began_ns) / 1e9
        return self.evaluations.result(status, self.steps(), seconds, self.scores)

    def _train_and_score(self) -> str:
        """Return the status of a run that has not diverged."""
        try:
            self.start()
            self._train()
            self._score_the_end()
        except KeyboardInterrupt:
            if self.began_ns:
                self._score_the_end()
            return "interrupted"
        return self.evaluations.status or "done"

    def _train(self) -> None:
        self.began_ns = self.train()
        due = self.evaluations.next_evaluation(0)
        while self.evaluations.status is None and self.steps_done() < self.plan.limit:
            self.poll()
            if not self.is_scoring() and due <= self.steps() < self.plan.limit:
                self.request_scores()
                due = self.evaluations.next_evaluation(self.steps())

    def _score_the_end(self) -> None:
        self.rest()
        if not self.evaluations.curve or self.evaluations.curve[-1].step < self.steps():
            self.request_scores()
            self.wait_for_scores()

    def steps(self) -> int:
        """Return the steps so far."""
        return self.arena.counters.load("steps")

    def take(self, step: int, at_ns: int, scores: Accuracies) -> None:
        """Record an evaluation after `step` steps."""
        self.scores, self.ended_ns = scores, at_ns
        seconds = (at_ns - self.began_ns) / 1e9
        self.evaluations.take(step, seconds, self.losses.pop(at_ns), scores)

    @abstractmethod
    def start(self) -> None:
        """Make the workers ready for their first step."""

    @abstractmethod
    def request_scores(self) -> None:
        """Start the scoring of the held-out rows; `take` gets the result, maybe later."""

    def is_scoring(self) -> bool:
        """Whether requested scores are missing."""
        return False

    def rest(self) -> None:
        """Wait until every step in progress has ended."""

    def wait_for_scores(self) -> None:
        """Wait until a worker at rest has scored the rows."""


class OneWorker(TrainingRun):
    """A run whose one worker is this process; `prepare` is called before its first step."""

    def __init__(
        self,
        plan: RunPlan,
        stack: ExitStack,
        callbacks: Callbacks,
        rungs: tuple[int, ...] = (),
        prepare: Prepare = no_preparation,
    ) -> None:
        super().__init__(plan, stack, callbacks, rungs)
        self._stack, self._prepare = stack, prepare

    def start(self) -> None:
        """Load the framework, and make the worker's arrays."""
        pid = os.getpid()
        entry = self.arena.workers.acquire_slot(1, pid, process_start_time(pid))
        job = self._job(entry.slot)
        with contextlib.redirect_stdout(sys.stderr):  # a worker process has a log
            backend = worker.start_backend(job, self.arena, job.kernels)
            self.context = worker.make_context(job, self.arena, entry, backend)
        self._stack.callback(self.context.backend.close)
        self._prepare(self.context)
        entry.state = State.RUNNING
        ring = Ring(self.arena.segment(f"ring.{job.slot}"))
        gradients = Gradients(job, self.arena, entry, backend)
        self.worker_steps = Steps(job, self.context, ring, gradients)

    def steps_done(self) -> int:
        """Return the steps so far: no other worker can die within one."""
        return self.steps()

    def poll(self, doing: Doing | None = None) -> None:
        """Take a step.

        Raises:
            Diverged: too many gradients in a row were not finite.
        """
        self.worker_steps.step()
        entry = self.context.entry
        self.losses.add(entry.loss)
        if entry.nonfinite_in_row >= min(MAX_NONFINITE, self.plan.limit):
            self.ended_ns = monotonic_ns()
            raise Diverged("the gradients are not finite")
        self.callbacks.beat()

    def request_scores(self) -> None:
        """Score the held-out rows at once."""
        self.context.copy_to_inbox()
        rows, beat = self.plan.task_rows.dataset(), self.callbacks.beat
        scores = score(self.context.backend, rows, self.plan.model, beat=beat)
        self.take(self.steps(), monotonic_ns(), scores)

    def report(self, message: str) -> None:
        """Ignore a message: all are about processes."""

    def drain(self) -> None:
        """Do nothing: `poll` reads the worker itself."""


class SeveralWorkers(TrainingRun):
    """A run of several worker processes; `tell` gets messages about them."""

    poll_s = 0.02

    def __init__(
        self,
        plan: RunPlan,
        stack: ExitStack,
        callbacks: Callbacks,
        rungs: tuple[int, ...],
        tell: Tell,
    ) -> None:
        folder = stack.enter_context(_folder())
        side_jobs = partial(ScoreJobs, plan.task_rows, plan.model, folder)
        plan = replace(plan, side_jobs=side_jobs)
        super().__init__(plan, stack, callbacks, rungs, folder)
        self._tell, self._scores = tell, folder / SCORES
        slots = range(1, len(plan.workers) + 1)
        self._rings = [Ring(self.arena.segment(f"ring.{slot}")) for slot in slots]
        self._asked_at: int | None = None  # restarts so far, during an evaluation

    def start(self) -> None:
        """Start the processes, and wait until they are ready."""
        self.spawn()
        self.until(self.ready, Doing(Activity.STARTING))

    def is_scoring(self) -> bool:
        """Whether a worker scores, or will."""
        return self._asked_at is not None

    def request_scores(self) -> None:
        """Ask the next worker that finishes a step to score the held-out rows."""
        self.ask("eval")
        self._asked_at = self.restarts

    def rest(self) -> None:
        """Let the workers finish their steps, and read their records."""
        self.command(Command.REST)
        self.until(self.resting, Doing(Activity.FINISHING))
        self.settle()
        self.drain()

    def wait_for_scores(self) -> None:
        """Let one of the resting workers score."""
        self.command(Command.EVALUATE)
        self.until(lambda: not self.is_scoring(), Doing(Activity.SCORING))

    def report(self, message: str) -> None:
        """Pass on a message about workers."""
        self._tell(message)

    def poll(self, doing: Doing | None = None) -> None:
        """Watch the workers for a moment; request an evaluation again if its worker died."""
        super().poll(doing)
        if self._asked_at is not None and self.restarts > self._asked_at:
            self.request_scores()
        self.callbacks.beat()

    def drain(self) -> None:
        """Read the records of the workers."""
        scores = take_scores(self._scores)
        for record in (record for ring in self._rings for record in ring.drain()):
            if record["kind"] == RecordKind.STEP:
                self.losses.add(float(record["loss"]), int(record["t_ns"]))
        if scores is not None:  # after the steps before it
            self._asked_at = None
            step, at_ns, values = scores
            if not self.evaluations.curve or step > self.evaluations.curve[-1].step:
                self.take(step, at_ns, values)  # requested twice, it counts once


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for logs and scores of workers; it is kept if one of them died too often."""
    folder = Path(tempfile.mkdtemp(prefix="mlxhog-mad-"))
    try:
        yield folder
    except WorkerFailed:
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def save_checkpoint(config: RunConfig, target: Path, arena: Arena) -> None:
    """Write a candidate's parameters, architecture and run, after `saving.check_target`.

    Raises:
        CheckpointError: a parameter is not finite; no file is left.
        EnvironmentLacks: the disk is full, or the system refuses; no file is left.
    """
    model = make_run_plan(config).model
    params = {name: arena.param(name) for name in arena.layout.slots}
    fields = contents.our_config_json(model, dtype=np.dtype(np.float32))
    step = arena.counters.load("version")
    saving.write(
        target,
        {"model.safetensors": contents.our_entries(model, params)},
        {"config.json": plain_json.dumps(fields, indent=1)},
        source=target,
        finish=lambda part: manifest.write(part, step, {"run": config.to_dict()}),
    )


TIMED_STEPS = 5
MOST_TIMED_NS = 10_000_000_000


class Duration(NamedTuple):
    """Seconds of one step, and of a run with the most steps."""

    step_s: float
    total_s: float


def estimate(plan: RunPlan) -> Duration | None:
    """Time a few steps; None for several workers, which would have to be started."""
    if len(plan.workers) > 1:
        return None
    with ExitStack() as stack:
        run = OneWorker(replace(plan, limit=plan.limit + 1), stack, Callbacks())
        run.start()
        run.train()
        run.worker_steps.step()  # the first one compiles and allocates
        began_ns, steps = monotonic_ns(), 0
        while steps < min(TIMED_STEPS, plan.limit) and monotonic_ns() - began_ns < MOST_TIMED_NS:
            run.worker_steps.step()
            steps += 1
        step_s = (monotonic_ns() - began_ns) / 1e9 / steps
        began_ns = monotonic_ns()
        run.request_scores()
        evaluation_s = (monotonic_ns() - began_ns) / 1e9
    every = interval(plan.asked.protocol, plan.per_epoch)
    total_s = plan.limit * step_s + -(-plan.limit // every) * evaluation_s
    return Duration(step_s, total_s)
