"""train(): one run from its configuration to its result."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.handover import socket_path
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.checkpoint import checkpoint, run
from mlxhog.config.budget import END_S, STOP_S, training_s
from mlxhog.config.config import TrainConfig
from mlxhog.config.quantities import Interval
from mlxhog.data.batches import Batches
from mlxhog.data.ledger import Ledger
from mlxhog.errors import (
    CheckpointError,
    Diverged,
    EnvironmentLacks,
    MlxhogError,
    RunError,
    WorkerFailed,
)
from mlxhog.files.durable import disk_errors, replace_file
from mlxhog.machine import machine
from mlxhog.machine.interrupts import Interrupts
from mlxhog.machine.workers import WorkerSpec
from mlxhog.models.families import param_spec
from mlxhog.optim import schedules
from mlxhog.report.metrics import Progress, Result, kernels_used
from mlxhog.strategies import course
from mlxhog.training import saving
from mlxhog.training.job import Job
from mlxhog.training.last_evaluation import BATCH_S, LastEvaluation
from mlxhog.training.monitor import Monitor
from mlxhog.training.plan import Plan, make_plan
from mlxhog.training.resume import restore
from mlxhog.training.side_jobs import Text
from mlxhog.training.summary import default_name, opening
from mlxhog.training.supervisor import Supervisor

Observer = Callable[[Progress], None]

POLL_S = 0.05
REPORT_S = 0.5
METRICS_S = 2.0
REST_S = 10.0  # how long workers may take to finish the step in hand when the time is over
SAMPLE_S = 60.0
EVALUATING_S = 60.0  # the last evaluation without a budget of time; more where training took more
GRACE_S = 3.0  # how long a step in hand may take when a budget of time is over
SAMPLING_S = 1.0  # of what is left then
LEAST_S = 1.0  # for an evaluation or a sample, however late it is
SAVE_BYTES_PER_S = 200e6  # of a checkpoint: written, flushed and read again for its digest


def plan(config: TrainConfig) -> Plan:
    """What `train(config)` would do: sizes, workers, threads, data. Starts nothing."""
    return make_plan(config)


def train(config: TrainConfig, *, observer: Observer | None = None) -> Result:
    """Train a model, lock-free by default, and leave a run directory.

    Args:
        config: the resolved configuration.
        observer: called about twice a second from this thread; it must not block. After an OSError,
            such as a closed pipe, it is not called again.

    Returns:
        The result; its `status` is "done", "interrupted", "diverged", or "unsaved" where the last
        checkpoint could not be written.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before anything is started.
        EnvironmentLacks: memory, disk space or a backend is missing.
        WorkerFailed: a worker died more often than allowed; the last checkpoint is named.
    """
    began_ns = monotonic_ns()
    planned = make_plan(config)
    with ExitStack() as stack:
        return _Training(planned, observer, stack, began_ns).execute()


class _Training:
    """The run while it lives."""

    def __init__(
        self, planned: Plan, observer: Observer | None, stack: ExitStack, began_ns: int
    ) -> None:
        self.plan, self.config, self.observer = planned, planned.config, observer
        self.run = planned.run or run.create(
            Path(self.config.out), self.config.name or default_name(self.config.data)
        )
        stack.enter_context(self.run.lock())
        self._check_nobody_went_on()
        self.arena = stack.enter_context(
            Arena.create(
                planned.layout,
                write=planned.writers.write,
                run_id=self.run.name[:64],
                fallback=self.run.directory,
            )
        )
        self.ledger = Ledger(self.arena, on_torn=self.config.on_torn)
        self.start = restore(planned, self.arena, self.ledger)
        self._step_limit = self.start.budget.step_limit(planned.tokens_per_step)
        course.limit_steps(self.arena, self.ledger, self._step_limit)
        socket = socket_path(self.run.directory)
        stack.enter_context(self.arena.serve(socket))
        self.supervisor = Supervisor(
            self.arena, self.ledger, planned.workers, self.config, self.run.directory, self._job
        )
        stack.callback(self.supervisor.kill)
        self.monitor = Monitor(
            self.arena,
            planned.workers,
            self.start.budget,
            gpu_write=planned.writers.gpu_write,
            kernels=kernels_used(planned.kernels),
            marks=self.config.data == "sotu",
        )
        self.evaluation = LastEvaluation(self.arena, self.supervisor, self._until)
        self.val_share: float | None = None
        self.status = "running"
        self.saved: Path | None = None
        self.unsaved: EnvironmentLacks | None = None
        self.sample: str | None = None
        self.copies_bits_per_byte: list[float] = []
        self._began_ns = began_ns
        self._end_ns: int | None = None  # when the run has to be over, of a budget of time
        self._signals = Interrupts()
        self._reported: set[str] = set()
        self._last_report = self._last_metrics = 0.0

    def _check_nobody_went_on(self) -> None:
        """Refuse a checkpoint that another command has gone beyond before this one had the lock."""
        found, spec = self.plan.checkpoint, self.config.resume
        if found is None or spec is None:
            return
        _, newest = checkpoint.resumable(spec, Path(self.config.out))
        if newest != found.path:
            raise RunError(f"another command has just gone on with {self.run.directory}; try again")

    def _job(self, slot: int, owner: int, spec: WorkerSpec) -> Job:
        return Job(
            handle=self.arena.handle(),
            slot=slot,
            owner=owner,
            workers=len(self.plan.workers),
            backend=spec.backend,
            threads=spec.threads,
            write=self.plan.writers.write,
            kernels=self.plan.kernels[slot - 1],
            engine=self.plan.writers.engine(spec.backend),
            micro_batch=self.config.batch_size,
            share=self.plan.gpu_share,
            config=self.config,
            model=self.plan.model,
            decay=frozenset(
                name for name, spec in param_spec(self.plan.model).items() if spec.decay
            ),
            batches=partial(
                Batches.open,
                self.plan.data.train,
                seq_len=self.config.seq_len,
                batch_size=self.config.batch_size * self.config.grad_accumulation,
                seed=self.config.seed,
            ),
            schedule=partial(schedules.build, self.config),
            side_jobs=Text(self.plan.data.val, self.plan.data.tokenizer, self.run.directory).open,
            budget=self.start.budget,
            step_limit=self._step_limit,
            run_dir=self.run.directory,
            sampled=self.plan.sampled,
        )

    # -- the course of a run ---------------------------------------------------------------------

    def execute(self) -> Result:
        with disk_errors(f"writing {self.run.config_path}"):
            replace_file(self.run.config_path, self.config.to_yaml().encode())
        self._write_status()
        error: MlxhogError | None = None
        self._report(opening(self.plan, self.run))
        notes = (
            *self.start.messages,
            *self.plan.notes,
            *self.plan.data.notes,
            self.arena.note,
        )
        for message in notes:
            if message:
                self._report(message)
        self._drop_lost_metrics()
        with self._signals:
            try:
                self.supervisor.start()
                self._until(self.supervisor.ready, "starting workers")
                if not self._signals.count:
                    self._train()
                    self._rest()
                    self._save_and_evaluate()
                if self.config.sample_every.on and self._may_ask():
                    self._write_sample()
                self.status = "interrupted" if self._signals.count else "done"
                if self.unsaved is not None:
                    self.status, error = "unsaved", self.unsaved
            except _StopNow:
                self.status, self.saved = "interrupted", None
            except Diverged as found:
                self.status, error = "diverged", found
            except WorkerFailed as found:
                self.status, error = "failed", self._rescued(found)
            except MlxhogError as found:
                self.status, error = "failed", found
            finally:
                self.supervisor.stop(timeout_s=0.0 if self._signals.count > 1 else self._stop_s())
        self.monitor.drain()
        if self.arena.counters.load("start_ns"):
            self._append_metrics()  # what a run says in the end counts all of it
        result = self._result(error)
        try:
            self._write_status(result=result.to_json(), error=result.error)
        except EnvironmentLacks as full:  # the result still reaches the caller
            self._report(f"run.json is not up to date: {full}")
        if error is not None and self.status == "failed":
            raise error
        if isinstance(error, Diverged):
            self._report(str(error))
        return result

    def _drop_lost_metrics(self) -> None:
        """Let the metrics of a resumed run end where its checkpoint does."""
        before = self.start.budget
        if self.plan.checkpoint is None:
            return
        try:
            self.run.drop_metrics_after(before.steps_before, before.seconds_before)
        except (RunError, EnvironmentLacks) as error:
            self._report(f"metrics keep the steps that were lost: {error}; training goes on")

    def _train(self) -> None:
        config, counters = self.config, self.arena.counters
        self._limit_time()
        counters.store("start_ns", monotonic_ns())
        if self.start.budget.is_used_up:
            self.monitor.ended_ns, self.monitor.over = counters.load("start_ns"), True
            return
        self.supervisor.command(Command.TRAIN)
        regular: list[tuple[Interval, Callable[[], None]]] = [
            (config.eval_every, lambda: self._ask_for("eval")),
            (config.sample_every, lambda: self._ask_for("sample")),
            (config.save_every, self._save_while_training),
        ]
        last = [(0, 0.0)] * len(regular)
        while not self._signals.count:
            if self._budget_is_used():
                self.monitor.over = True
                break
            self._poll()
            steps, seconds = counters.load("steps"), self.monitor.seconds()
            for k, (interval, act) in enumerate(regular):
                if interval.due(steps=steps - last[k][0], seconds=seconds - last[k][1]):
                    last[k] = (steps, seconds)
                    act()

    def _limit_time(self) -> None:
        """Find out how long training may take of a budget of time, now that workers are up."""
        seconds = self.start.budget.seconds
        if not seconds:
            return
        limit_s = training_s(
            seconds,
            start_s=(monotonic_ns() - self._began_ns) / 1e9,
            save_s=self._save_s(),
            evaluates=self.config.eval_every.on,
        )
        self._end_ns = self._began_ns + int((seconds + END_S - STOP_S) * 1e9)
        self.arena.counters.store("limit_ns", int(limit_s * 1e9))
        self.monitor.budget = replace(self.start.budget, seconds=limit_s)

    def _save_s(self) -> float:
        """About how long a checkpoint takes."""
        return saving.n_bytes(self.plan) / SAVE_BYTES_PER_S

    def _ask_for(self, what: str) -> None:
        """Ask the next worker that finishes a step for an evaluation or a sample."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def _budget_is_used(self) -> bool:
        """Whether a limit is reached, in steps that are over for good (`course.steps_done`)."""
        counters, budget = self.arena.counters, self.monitor.budget
        return (
            self.monitor.no_step_fits()
            or (self._step_limit is not None and self._steps_done() >= self._step_limit)
            or (budget.tokens is not None and counters.load("tokens") >= budget.tokens)
        )

    def _time_is_over(self) -> bool:
        limit_s = self.monitor.budget.seconds
        return limit_s is not None and self.monitor.seconds() >= limit_s

    def _steps_done(self) -> int:
        return course.steps_done(self.config, len(self.plan.workers), self.arena, self.ledger)

    def _may_ask(self) -> bool:
        """Whether the user has not interrupted, and there are workers to ask for something."""
        return not self._signals.count and self.supervisor.has_workers()

    def _rest(self) -> None:
        """Let workers finish the step in hand; one that takes too long is abandoned.

        Its ticket goes back, and whoever resumes the run computes it again.

        Raises:
            WorkerFailed: training ended before its budget was used.
        """
        self.supervisor.command(Command.REST)
        resting, doing = self.supervisor.resting, "finishing the last steps"
        self._until(lambda: self._signals.count > 0 or self._time_is_over() or resting(), doing)
        limit_s = GRACE_S if self._time_is_over() else REST_S
        if not self._until(resting, doing, limit_s=limit_s, even_if_interrupted=True):
            self.supervisor.abandon()
            self._report_messages()
        self.monitor.ended_ns = self.monitor.ended_ns or monotonic_ns()
        self._settle()
        if not (self._signals.count or self._budget_is_used()):
            raise WorkerFailed(
                f"training ended after {self._steps_done()} of {self._step_limit} steps"
            )
        if self.monitor.over and not self.monitor.totals()[0]:
            self._report(
                "no step was finished in the time; give more with --time, or choose a smaller "
                "--model, --batch-size or --seq-len"
            )

    def _save_and_evaluate(self) -> None:
        """Save what the run has come to, while workers evaluate it."""
        evaluates = self.config.eval_every.on and self._may_ask()
        if evaluates:
            copies = len(course.kept_copies(self.config, len(self.plan.workers)))
            self.evaluation.begin(self._evaluate_until(parts=1 + copies))
        try:
            if self.start.budget.is_used_up and self.plan.checkpoint is not None:
                self.saved = self.plan.checkpoint.path
            else:
                self._save()
        except EnvironmentLacks as error:
            self.unsaved = error  # the model is still evaluated: the numbers are worth having
            self._report(f"no checkpoint: {error}")
        except CheckpointError as error:
            raise Diverged(
                f"{error}; lower --lr or --clip, then --resume from the last checkpoint"
            ) from error
        if evaluates and not self._signals.count:
            self._take_evaluation()

    def _settle(self) -> None:
        course.settle(self.config, len(self.plan.workers), self.arena, self.ledger)

    def _rescued(self, failure: WorkerFailed) -> WorkerFailed:
        """Save what a failed run has reached, and add to its message how to go on."""
        self.supervisor.kill()
        if not self._steps_done():
            return failure
        try:
            self._settle()
            self._save()
        except (EnvironmentLacks, CheckpointError) as error:
            return WorkerFailed(f"{failure}; its last steps could not be saved: {error}")
        return WorkerFailed(
            f"{failure}; saved {self.saved}, go on with mlxhog train --resume {self.run.directory}"
        )

    def _save_while_training(self) -> None:
        """Let every worker finish its step, save, and go on."""
        limit_s = self.monitor.budget.seconds
        if limit_s is not None and self.monitor.seconds() + self._save_s() >= limit_s:
            return  # the end saves one
        self.arena.counters.store("pause", 1)
        try:
            if self._until(self.supervisor.holding_still, "pausing for a checkpoint", REST_S):
                self._settle()
                self._save()
            elif not self._signals.count:
                self._report(f"no checkpoint: workers did not pause within {REST_S:.0f} s")
        except (EnvironmentLacks, CheckpointError) as error:
            self._report(f"no checkpoint: {error}; training goes on")
        finally:
            self.arena.counters.store("pause", 0)

    def _save(self) -> None:
        self.saved = saving.save(
            self.plan, self.run, self.arena, self.ledger, self.start, self.monitor
        )

    def _take_evaluation(self) -> None:
        """Wait for the evaluation of the parameters, and evaluate what they are the average of."""
        found = self.evaluation.wait()
        if self._signals.count:
            return
        self.val_share = found.share
        average = found.bits_per_byte
        if average is None:
            return
        self.monitor.val_bits_per_byte, self.monitor.val_tokens = average, found.tokens
        n_workers = len(self.plan.workers)
        with course.each_copy(self.config, n_workers, self.arena) as copies:
            for k, load in enumerate(copies):
                rested = self._until(self.supervisor.resting, "evaluating", BATCH_S)
                if self._signals.count or not rested:
                    return
                load()
                self.evaluation.begin(self._evaluate_until(parts=len(copies) - k))
                self.copies_bits_per_byte.append(self.evaluation.wait().bits_per_byte or math.nan)
        if warning := course.worse_than_a_copy(average, self.copies_bits_per_byte):
            self._report(warning)

    def _evaluate_until(self, parts: int) -> int:
        """When an evaluation has to end that is the first of so many; monotonic."""
        now = monotonic_ns()
        if self._end_ns is None:
            seconds = max(EVALUATING_S, self.monitor.seconds()) / parts
        else:
            seconds = max(((self._end_ns - now) / 1e9 - SAMPLING_S) / parts, LEAST_S)
        return now + int(seconds * 1e9)

    def _stop_s(self) -> float:
        """How long workers may take to leave."""
        if self._end_ns is None:
            return 5.0
        return min(max((self._end_ns - monotonic_ns()) / 1e9, LEAST_S), 5.0)

    def _write_sample(self) -> None:
        """Let one worker write a sample of text; none is waited for once a worker has died."""
        samples, deaths, seconds = self.monitor.samples, self.supervisor.restarts, SAMPLE_S
        if self._end_ns is not None:
            seconds = max((self._end_ns - monotonic_ns()) / 1e9, LEAST_S)
        if not self.supervisor.has_workers():
            return
        self.arena.counters.store("side_until_ns", monotonic_ns() + int(seconds * 1e9))
        self._ask_for("sample")
        self.supervisor.command(Command.SAMPLE)
        self._until(
            lambda: self.monitor.samples > samples or self.supervisor.restarts > deaths,
            "sampling",
            limit_s=seconds + LEAST_S,
        )

    # -- watching --------------------------------------------------------------------------------

    def _until(
        self,
        condition: Callable[[], bool],
        doing: str | Callable[[], str],
        limit_s: float = math.inf,
        *,
        even_if_interrupted: bool = False,
    ) -> bool:
        """Watch workers until a condition holds; returns whether it does.

        Args:
            condition: asked again and again.
            doing: shown to the user.
            limit_s: gives up after so much time in which workers were watched.
            even_if_interrupted: a first interrupt ends the wait, unless this is set.

        Raises:
            WorkerFailed: no worker is left that could make the condition true.
        """
        watched, interrupts = WatchedTime(), self._signals.count
        while not condition():
            if watched.look() > limit_s:
                return False
            if self._signals.count > interrupts and not even_if_interrupted:
                return False
            shown = doing if isinstance(doing, str) else doing()
            if not self.supervisor.has_workers():
                raise WorkerFailed(f"no worker is left for {shown}")
            self._poll(shown)
        return True

    def _poll(self, doing: str | None = None) -> None:
        if self._signals.count > 1:
            raise _StopNow
        self.supervisor.poll(POLL_S)
        samples = self.monitor.samples
        self.monitor.drain()
        if self.monitor.samples > samples:
            self.sample = self.run.last_sample()
        now = monotonic_ns() / 1e9
        self._report_messages()
        if now - self._last_report >= REPORT_S:
            self._last_report = now
            self._report(None, doing)
        if now - self._last_metrics >= METRICS_S and self.arena.counters.load("start_ns"):
            self._last_metrics = now
            self._append_metrics()

    def _report_messages(self) -> None:
        """Pass on what the supervisor has to say of workers."""
        for message in self.supervisor.messages:
            self._report(message)
        self.supervisor.messages.clear()

    def _append_metrics(self) -> None:
        try:
            now = self.monitor.progress().to_json()  # counts from this command on, hence its pid
            self.run.append_metrics({**now, "supervisor_pid": os.getpid()})
        except EnvironmentLacks as error:
            self._report_once(f"no metrics: {error}; training goes on")

    def _report(self, message: str | None, doing: str | None = None) -> None:
        if self.observer is None:
            return
        progress = self.monitor.progress(sample=self.sample, message=message, doing=doing)
        try:
            self.observer(progress)
        except OSError as error:  # such as a closed pipe: what is shown must not end the training
            self.observer = None
            warnings.warn(f"progress cannot be shown any more: {error}", stacklevel=2)

    def _report_once(self, message: str) -> None:
        """Report what would be said again every few seconds."""
        if message not in self._reported:
            self._reported.add(message)
            self._report(message)

    def _write_status(self, **more: Any) -> None:
        """Replace run.json."""
        steps, tokens, _ = self.monitor.totals()
        self.run.write_status(
            {
                "status": self.status,
                "supervisor_pid": os.getpid(),
                "socket": socket_path(self.run.directory),
                "mlxhog": version("mlxhog"),
                "machine": machine.here().name,
                "gpu_write": self.plan.writers.gpu_write,
                "kernels": kernels_used(self.plan.kernels),
                "emulated": self.plan.emulated,
                "parameters": self.plan.parameters,
                "steps": steps,
                "tokens": tokens,
                "checkpoint": self.saved,
                **more,
            }
        )

    def _result(self, error: MlxhogError | None) -> Result:
        steps, tokens, seconds = self.monitor.totals()
        return Result(
            run=str(self.run.directory),
            status=self.status,
            steps=steps,
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds if seconds else 0.0,
            val_bits_per_byte=self.monitor.val_bits_per_byte,
            val_tokens=self.monitor.val_tokens,
            val_share=self.val_share,
            restarts=self.supervisor.restarts,
            dropped_steps=self.monitor.dropped_steps(),
            torn=self.supervisor.torn,
            lost_update_rate=self.monitor.lost_update_rate(),
            workers=self.monitor.worker_reports(),
            checkpoint=str(self.saved) if self.saved else None,
            gpu_write=self.plan.writers.gpu_write,
            kernels=kernels_used(self.plan.kernels),
            emulated_before=self.plan.emulated_before,
            staleness=self.monitor.staleness(),
            sample=self.sample,
            error=None if error is None else str(error),
            copies_bits_per_byte=tuple(self.copies_bits_per_byte),
        )


class _StopNow(Exception):
    """The user interrupted twice."""
