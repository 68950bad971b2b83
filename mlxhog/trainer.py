"""train(): one run from its configuration to its result."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from mlxhog import checkpoint, run, saving
from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.config import TrainConfig
from mlxhog.control import Command
from mlxhog.data.ledger import Ledger
from mlxhog.errors import Diverged, EnvironmentLacks, MlxhogError
from mlxhog.metrics import Progress, Result
from mlxhog.mix import WorkerSpec
from mlxhog.monitor import Monitor
from mlxhog.plan import Plan, make_plan
from mlxhog.resume import restore
from mlxhog.supervisor import Supervisor
from mlxhog.worker import Job

Observer = Callable[[Progress], None]

POLL_S = 0.05
REPORT_S = 0.5
METRICS_S = 2.0
REST_S = 10.0  # how long workers may take to finish the step in hand


def plan(config: TrainConfig) -> Plan:
    """What `train(config)` would do: sizes, workers, threads, data. Starts nothing."""
    return make_plan(config)


def train(config: TrainConfig, *, observer: Observer | None = None) -> Result:
    """Train a model, lock-free by default, and leave a run directory.

    Args:
        config: the resolved configuration.
        observer: called about twice a second from this thread; it must not block.

    Returns:
        The result; its `status` is "done", "interrupted" or "diverged".

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before anything is started.
        EnvironmentLacks: memory, disk space or a backend is missing.
        WorkerFailed: a worker died more often than allowed; the last checkpoint is named.
    """
    planned = make_plan(config)
    with ExitStack() as stack:
        return _Training(planned, observer, stack).run()


class _Training:
    """The run while it lives."""

    def __init__(self, planned: Plan, observer: Observer | None, stack: ExitStack) -> None:
        self.plan, self.config, self.observer = planned, planned.config, observer
        self.run_dir = planned.open_run()
        stack.enter_context(self.run_dir.lock())
        self.arena = stack.enter_context(
            Arena.create(planned.layout, write=self.config.write, run_id=uuid.uuid4().bytes)
        )
        self.ledger = Ledger(self.arena)
        self.start = restore(planned, self.arena, self.ledger)
        stack.enter_context(self.run_dir.serve(self.arena))
        self.supervisor = Supervisor(
            self.arena, self.ledger, planned.workers, self.config, self.run_dir.path, self._job
        )
        stack.callback(self.supervisor.kill)
        self.monitor = Monitor(self.arena, planned.workers, self.start.budget)
        self.status = "running"
        self.saved: checkpoint.Saved | None = None
        self.sample: str | None = None
        self._interrupts = 0
        self._last_report = self._last_metrics = 0.0

    def _job(self, slot: int, owner: int, spec: WorkerSpec) -> Job:
        return Job(
            handle=self.arena.handle(),
            slot=slot,
            owner=owner,
            workers=len(self.plan.workers),
            backend=spec.backend,
            threads=spec.threads,
            config=self.config,
            model=self.plan.model,
            data=self.plan.data,
            budget=self.start.budget,
            step_limit=self.start.budget.step_limit(self.plan.tokens_per_step),
            run_dir=self.run_dir.path,
        )

    # -- the course of a run ---------------------------------------------------------------------

    def run(self) -> Result:
        self.run_dir.begin(self.plan, status="running")
        error: MlxhogError | None = None
        with self._signals():
            try:
                self.supervisor.start()
                self._until(self.supervisor.ready, "starting workers")
                if not self._interrupts:
                    self._train()
                    self._rest_and_save()
                if not self._interrupts:
                    self._evaluate()
                    self._write_sample()
                self.status = "interrupted" if self._interrupts else "done"
            except _StopNow:
                self.status, self.saved = "interrupted", None
            except Diverged as found:
                self.status, error = "diverged", found
            except MlxhogError as found:
                self.status, error = "failed", found
            finally:
                self.supervisor.stop(timeout_s=0.0 if self._interrupts > 1 else 5.0)
        self.monitor.drain()
        result = self._result()
        self.run_dir.end(result, error=str(error) if error else None)
        if error is not None and not isinstance(error, Diverged):
            raise error
        if error is not None:
            self._report(str(error))
        return result

    def _train(self) -> None:
        config, counters = self.config, self.arena.counters
        counters.store("start_ns", monotonic_ns())
        self.supervisor.command(Command.TRAIN)
        next_eval, next_save = config.eval_every, config.save_every
        while not (self._interrupts or self._budget_is_used()):
            self._poll()
            seconds = self.monitor.seconds()
            if config.eval_every > 0 and seconds >= next_eval:
                next_eval += config.eval_every
                counters.store("eval_asked", counters.load("eval_taken") + 1)
            if config.save_every > 0 and seconds >= next_save:
                next_save = seconds + config.save_every
                self._save_while_training()
        self.monitor.ended_ns = monotonic_ns()

    def _budget_is_used(self) -> bool:
        """Whether workers will take no further step: limits are reached and nobody computes."""
        counters, budget = self.arena.counters, self.start.budget
        limit = budget.step_limit(self.plan.tokens_per_step)
        over = budget.seconds is not None and self.monitor.seconds() >= budget.seconds
        over = over or (limit is not None and counters.load("steps") >= limit)
        return over and self.supervisor.resting()

    def _rest_and_save(self) -> None:
        self.supervisor.command(Command.REST)
        if not self._until(self.supervisor.resting, "finishing the last steps", limit_s=REST_S):
            self.supervisor.kill()
        self._save()

    def _save_while_training(self) -> None:
        """Let every worker finish its step, save, and go on."""
        self.arena.counters.store("pause", 1)
        try:
            if self._until(self.supervisor.holding_still, "pausing for a checkpoint", REST_S):
                self._save()
        except EnvironmentLacks as error:
            self._report(f"no checkpoint: {error}; training goes on")
        finally:
            self.arena.counters.store("pause", 0)

    def _save(self) -> None:
        self.saved = saving.save(self.plan, self.run_dir, self.arena, self.ledger, self.start, self.monitor)

    def _evaluate(self) -> None:
        """Evaluate the held-out text, all workers together; again if one died on the way."""
        counters = self.arena.counters
        chunks = self.plan.data.final_chunks(self.config)
        round_ = 0
        while self.monitor.final_chunks(round_) < chunks and not self._interrupts:
            round_ += 1
            deaths = self.supervisor.restarts
            counters.store("eval_next", 0)
            counters.store("eval_round", round_)
            self.supervisor.command(Command.EVALUATE)
            self._until(
                lambda r=round_, d=deaths: self.monitor.final_chunks(r) >= chunks
                or self.supervisor.restarts > d,
                "evaluating held-out text",
            )
        if round_ and self.monitor.final_chunks(round_) >= chunks:
            self.monitor.val_bits_per_byte = self.monitor.final_bits_per_byte(round_)

    def _write_sample(self) -> None:
        """Let the first worker write a sample of text; a failure costs only the sample."""
        counters = self.arena.counters
        if self._interrupts or self.config.sample_tokens == 0:
            return
        counters.store("sampler", 1)
        self.supervisor.command(Command.SAMPLE)
        if self._until(lambda: counters.load("sampler") == 0, "sampling", limit_s=60.0):
            self.sample = self.run_dir.last_sample()

    # -- watching --------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], bool], doing: str, limit_s: float = 1e9) -> bool:
        """Watch workers until a condition holds, the time is over, or the user interrupts twice."""
        end = monotonic_ns() + int(limit_s * 1e9)
        interrupts = self._interrupts
        while not condition():
            if monotonic_ns() > end:
                return False
            if self._interrupts > interrupts and doing != "finishing the last steps":
                return False
            self._poll(doing)
        return True

    def _poll(self, doing: str | None = None) -> None:
        if self._interrupts > 1:
            raise _StopNow
        self.supervisor.poll(POLL_S)
        self.monitor.drain()
        now = monotonic_ns() / 1e9
        for message in self.supervisor.messages:
            self._report(message)
        self.supervisor.messages.clear()
        if now - self._last_report >= REPORT_S:
            self._last_report = now
            self._report(doing)
        if now - self._last_metrics >= METRICS_S and self.arena.counters.load("start_ns"):
            self._last_metrics = now
            self.run_dir.append_metrics(self.monitor.progress())

    def _report(self, message: str | None) -> None:
        if self.observer is not None:
            self.observer(self.monitor.progress(sample=self.sample, message=message))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count Ctrl-C and SIGTERM instead of dying of them; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(signum: int, frame: FrameType | None) -> None:
            self._interrupts += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _result(self) -> Result:
        counters, seconds = self.arena.counters, self.monitor.seconds()
        tokens = counters.load("tokens")
        return Result(
            run=str(self.run_dir.path),
            status=self.status,
            steps=counters.load("steps"),
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds if seconds else 0.0,
            val_bits_per_byte=self.monitor.val_bits_per_byte,
            restarts=self.supervisor.restarts,
            dropped_steps=self.monitor.dropped_steps(),
            torn=self.supervisor.torn,
            lost_update_rate=self.monitor.lost_update_rate(),
            workers=self.monitor.worker_reports(),
            checkpoint=str(self.saved.path) if self.saved else None,
        )


class _StopNow(Exception):
    """The user interrupted twice."""
