"""The worker processes of a run and their arena: spawned, watched, replaced, ended.

Only this process reaps: it returns a worker's tickets and frees its locks only after `waitpid` has
reported its end. A worker keeps its slot through restarts and so inherits its predecessor's
optimizer state. A replacement that cannot start is tried again after a pause, which doubles: what
the machine lacks now it may have then. Workers may join and leave while others train. If a worker
that has joined cannot start, or dies too often, the run continues without it.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena import Arena
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.workers import MAX_NONFINITE, QUIESCED, Entry, WorkerPhase, WorkerState
from mlxhog.base.child_processes import Death, WorkerPool, WorkerProcess, last_lines_of
from mlxhog.base.durable import disk_errors
from mlxhog.base.inside import subfolder
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.errors import ConfigError, Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.training.plan.values import HINTS, LOST_GPU_EXIT_CODE, MAX_HALVINGS, Job, Plan
from mlxhog.training.supervisor.handles import WorkerHandle
from mlxhog.training.worker import main as worker_process

if TYPE_CHECKING:  # only runs of a cluster load it
    from mlxhog.cluster.sidecar import Sidecar

SIDECAR_LEAVES_S = 1.0
MAX_PAUSE_S = 30.0  # before a replacement that could not start is tried again
LEAVE_S = 10.0  # how long a worker that leaves may take to finish its step
STALE_STEPS = 20  # no heartbeat for this many median steps counts as hung
EXIT_ERRORS = {2: ConfigError, 3: EnvironmentLacks}
WATCHDOG = (-signal.SIGABRT, LOST_GPU_EXIT_CODE)
"""Exit codes of a GPU worker that macOS has ended."""


class Processes(ABC):
    """An arena and its workers; used by one thread of one process."""

    plan: Plan  # of the run, with its present strategy and workers
    budget: Budget  # of this call, in steps of the present strategy

    def __init__(
        self, plan: Plan, run_dir: Path, *, stack: ExitStack, fallback: Path | None = None
    ) -> None:
        """Create the arena, which the caller fills; this spawns no process.

        Logs of workers go to the folder `logs` of `run_dir`. On close, the stack kills the workers
        and closes the arena. If shared memory is too small, the arena is a file in `fallback`.
        """
        self.plan, self.run_dir, self.budget = plan, run_dir, plan.budget
        self._steps_allowed: int | None = None  # that the present strategy may take
        self.arena = stack.enter_context(
            Arena.create(plan.layout, write=plan.writers.write, fallback=fallback)
        )
        self.ledger = Ledger(self.arena)
        self.handles = [WorkerHandle(slot, spec) for slot, spec in enumerate(plan.workers, start=1)]
        self.pool = WorkerPool()
        self.sidecar: Sidecar | None = None  # of the run's cluster
        if plan.sidecar is not None:
            from mlxhog.cluster.sidecar import Sidecar

            log = run_dir / "logs" / "sidecar.log"
            self.sidecar = Sidecar(self.arena, replace(plan.sidecar, log=log))
        self.restarts = self.removed = 0  # replaced workers, and those that left or were given up
        self.torn = 0  # batches that died half applied
        self.notices: dict[str, None] = {}  # of workers, each once, in order
        self.clock = Clock(self.arena.counters, self.budget.seconds)
        self._watched = WatchedTime()
        stack.callback(self.stop, 0.0)

    @abstractmethod
    def report(self, message: str) -> None:
        """Show the user a message."""

    # -- the state of workers --------------------------------------------------------------------

    def entry(self, handle: WorkerHandle) -> Entry:
        """The worker table entry of a handle."""
        return self.arena.workers.entry(handle.slot)

    def ready(self) -> bool:
        """Whether every worker is up, and the sidecar of a cluster has data for them."""
        return (self.sidecar is None or self.sidecar.is_ready) and all(
            self.entry(handle).state == WorkerState.RUNNING for handle in self.handles
        )

    def ends(self) -> int:
        """Number of ended workers, which may have left accepted jobs undone."""
        return self.restarts + self.removed

    def has_workers(self) -> bool:
        """Whether a worker process exists, or is to be started again."""
        return bool(self.pool) or any(handle.respawn_s is not None for handle in self.handles)

    def is_drained(self) -> bool:
        """Whether every worker is up or cancelled, and none is inside a step or an evaluation.

        A dead or starting worker may have left work half done that others wait for.
        """
        return self._twice(lambda: [self._is_idle(handle) for handle in self.handles])

    def only_dead_in_step(self) -> bool:
        """Whether all workers that are inside a step or an evaluation are dead."""

        def look() -> list[bool]:
            dead = self.pool.wait(0.0)
            return [handle.slot in dead for handle in self.in_step()]

        return self._twice(look)

    def in_step(self) -> list[WorkerHandle]:
        """Workers, dead ones included, that are inside a step or an evaluation."""
        return [
            handle
            for handle in self.handles
            if handle.slot in self.pool
            and self.entry(handle).state != WorkerState.STARTING
            and not self._is_idle(handle)
        ]

    def is_quiesced(self) -> bool:
        """Whether no worker changes the state of a checkpoint while `pause` is set.

        Others may be waiting for a starting worker, unless they are inside a collective step. A
        worker that evaluates or samples holds no ticket and writes nothing of a checkpoint. It
        claims next, and every `claim` checks `pause` before a change, except for its part in a
        joint step (`between_steps`).
        """

        def look() -> list[bool]:
            phases = [self.entry(handle).phase in QUIESCED for handle in self.handles]
            return [*phases, self.plan.strategy.between_steps(self.arena)]

        return self._twice(look)

    def has_background_task(self) -> bool:
        """Whether a worker evaluates or samples; this ends by itself."""
        background_tasks = (WorkerPhase.EVALUATE, WorkerPhase.SAMPLE)
        return any(self.entry(handle).phase in background_tasks for handle in self.handles)

    def _is_idle(self, handle: WorkerHandle) -> bool:
        entry = self.entry(handle)
        return handle.cancelled or (
            entry.state == WorkerState.RUNNING and entry.phase == WorkerPhase.IDLE
        )

    def _twice(self, look: Callable[[], list[bool]]) -> bool:
        """Whether all are true twice, with no step in between, and the sidecar is idle."""

        def steps() -> list[tuple[int, int]] | None:
            still = all(look()) and (self.sidecar is None or self.sidecar.is_idle())
            every = map(self.entry, self.handles)
            return [(entry.steps, entry.state) for entry in every] if still else None

        if (before := steps()) is None:
            return False
        time.sleep(0.02)
        return before == steps()

    # -- their start, and the next job -----------------------------------------------------------

    def spawn(self) -> None:
        """Start every worker, and the sidecar of a cluster."""
        with disk_errors(f"making the folder for the workers' logs in {self.run_dir}"):
            subfolder(self.run_dir, "logs")
        if self.sidecar is not None:
            if not (slots := self.free_slots()):
                raise ConfigError("the arena has no slot for the sidecar; set --max-workers")
            self.sidecar.start(slots[-1])
        for handle in self.handles:
            self._spawn(handle)
        self._count()

    def _spawn(self, handle: WorkerHandle) -> None:
        handle.begin()
        job = self._job(handle.slot, handle.halvings)
        if self.plan.config.determinism == "record":
            from mlxhog.arena import event_log

            begin = event_log.Begin(job.spec.backend, job.spec.threads, job.kernels)
            event_log.append(event_log.worker_path(self.run_dir, handle.slot), begin)
        self.pool[handle.slot] = WorkerProcess(
            worker_process.main,
            (job,),
            name=f"mlxhog-worker-{handle.slot}",
            threads=handle.spec.threads,
            table=self.arena.workers,
            slot=handle.slot,
        )

    def _job(self, slot: int, halvings: int = 0) -> Job:
        return Job(
            plan=self.plan,
            handle=self.arena.handle(),
            slot=slot,
            run_dir=self.run_dir,
            budget=self.budget,
            step_limit=self._steps_allowed,
            halvings=halvings,
        )

    def are_parked(self) -> bool:
        """Let workers leave their strategy, while they hold still; whether all wait for a job.

        One that is still starting, or has died meanwhile, has no job from now on.
        """
        if any(handle.leaving_s is not None for handle in self.handles):
            return False
        for handle in self.handles:
            entry = self.entry(handle)
            if entry.state == WorkerState.RUNNING:
                entry.state, handle.parked = WorkerState.STARTING, True
        parked = [handle for handle in self.handles if handle.parked]
        if any(self.entry(handle).phase != WorkerPhase.STARTING for handle in parked):
            return False
        for handle in self.handles:
            if not handle.parked and handle.slot in self.pool:
                self._reap(handle)  # it holds no ticket
        return True

    def reassign(self) -> None:
        """Give all workers, which are parked, jobs by the present plan.

        Threads fill the pipes, since a worker that is stopped would hold up this one.
        """

        def send(pipe: Connection, job: bytes) -> None:
            with suppress(OSError):  # the worker is dead, and its successor has the job
                pipe.send_bytes(job)

        for handle in list(self.handles):
            if not handle.parked:
                self._or_remove(handle, self._respawn)
                continue
            handle.parked = False
            job = replace(self._job(handle.slot, handle.halvings), handle=None)
            message = self.pool[handle.slot].pipe, bytes(ForkingPickler.dumps(job))
            threading.Thread(target=send, args=message, daemon=True).start()

    def _count(self) -> None:
        """Store the number of workers, on which learning rates and predictions depend."""
        n = sum(handle.up or not handle.joined for handle in self.handles)
        self.arena.counters.store("workers", n)

    # -- watching --------------------------------------------------------------------------------

    def watch(self, wait_s: float) -> None:
        """Wait, or until a worker dies; reap and replace the dead.

        Raises:
            WorkerFailed: a worker met an error that a restart cannot cure, or died more often than
                `config.restarts` in ten minutes.
            Diverged: `MAX_NONFINITE` gradients in a row were not finite.
            ConfigError, EnvironmentLacks: a first worker cannot start; the message is its own.
        """
        self._kill_stale()
        dead = self.pool.wait(wait_s)
        if self.sidecar is not None:
            self.sidecar.poll()
            while self.sidecar.messages:
                self.report(self.sidecar.messages.pop(0))
        for handle in list(self.handles):
            if handle.slot in dead:
                if handle.leaving_s is not None:
                    self._remove(handle)
                else:
                    self._or_remove(handle, self._replace)
                continue
            if handle.respawn_s is not None and self._watched.look() >= handle.respawn_s:
                self._or_remove(handle, self._respawn)
            entry = self.entry(handle)
            if not handle.notices_read and entry.state == WorkerState.RUNNING:
                self._welcome(handle)
            if entry.nonfinite_in_row >= MAX_NONFINITE:
                raise Diverged(
                    f"{handle} computed {entry.nonfinite_in_row} non-finite gradients in a row; "
                    "lower --lr or --clip, then --resume from the last checkpoint"
                )
        self.ledger.sweep_orphans()

    def _welcome(self, handle: WorkerHandle) -> None:
        handle.notices_read = True
        with suppress(EOFError, OSError):  # it has died since
            for notice in self.pool[handle.slot].pipe.recv():
                self.notices[notice] = None
                self.report(notice)
        if handle.joined and not handle.up:
            handle.up = True
            self._count()
            self.report(f"{handle} has joined")

    def _kill_stale(self) -> None:
        """Kill workers without a heartbeat for too long; `watch` then reaps them."""
        steps_s = [
            (entry.read_ns + entry.compute_ns + entry.apply_ns) / entry.steps / 1e9
            for entry in map(self.entry, self.handles)
            if entry.steps
        ]
        limit_s = self.plan.config.heartbeat_timeout
        if steps_s:
            limit_s = max(limit_s, STALE_STEPS * statistics.median(steps_s))
        now_s = self._watched.look()
        for handle in self.handles:
            entry = self.entry(handle)
            silent_s = handle.silent_s(entry, now_s)
            is_silent = silent_s > handle.may_be_silent_s(entry, limit_s)
            is_late = handle.leaving_s is not None and now_s - handle.leaving_s > LEAVE_S
            process = self.pool.get(handle.slot)
            if (is_late or is_silent) and process is not None and process.is_alive():
                process.kill()
                if not is_late:
                    handle.was_silent = True
                    first = "" if entry.steps else ", before its first step was done"
                    self.report(
                        f"{handle} gave no sign of life for {silent_s:.0f} s in phase "
                        f"{WorkerPhase(entry.phase).name.lower()}{first}; killed (a slow machine "
                        "may need more: --heartbeat-timeout)"
                    )

    # -- death -----------------------------------------------------------------------------------

    def _reap(self, handle: WorkerHandle, timeout_s: float = 0.0) -> Death:
        """Free the tickets and locks of a dead worker; kill it first after `timeout_s`."""
        entry = self.entry(handle)
        if self.plan.config.determinism == "record":
            from mlxhog.strategies import recorded

            self.pool[handle.slot].end(timeout_s)
            recorded.settle(self.arena, self.run_dir, handle.slot)
        death = self.pool.reap(handle.slot, timeout_s)
        report = self.ledger.reap(entry.incarnation)
        entry.torn += report.torn
        self.torn += report.torn
        # If all write an update together, the replacement finishes it.
        if self.plan.strategy.between_steps(self.arena):
            SeqlockCounters(self.arena, handle.slot).end_update()
        return death

    def _or_remove(self, handle: WorkerHandle, act: Callable[[WorkerHandle], None]) -> None:
        """Act on a worker; if that fails, continue without it if it has joined others."""
        try:
            act(handle)
        except (ConfigError, EnvironmentLacks, WorkerFailed) as error:
            is_last = all(other is handle or other.leaving_s is not None for other in self.handles)
            if is_last or not handle.joined:
                raise
            self._remove(handle, f"{error}; the run continues without it")

    def _replace(self, handle: WorkerHandle) -> None:
        state = self.entry(handle).state
        death = self._reap(handle)
        is_over = self.arena.counters.load("command") == ControlCommand.EXIT
        if is_over or state == WorkerState.FINISHED:
            return
        log = self._job(handle.slot).log
        last = last_lines_of(log)[-1]
        is_first = not self.clock.has_started or (handle.joined and not handle.up)
        if state == WorkerState.STARTING and death.code in EXIT_ERRORS and is_first:
            raise EXIT_ERRORS[death.code](f"{handle} cannot start: {last}")
        if death.is_fault:
            raise WorkerFailed(
                f"{handle} met an error that a restart cannot cure: {last}; see {log}, and please "
                "report it"
            )
        if handle.spec.backend in GPU_BACKENDS and death.code in WATCHDOG:
            lost = f"lost its GPU ({last})" if death.code > 0 else "was aborted (SIGABRT)"
            self._halve(handle, f"{handle} {lost}", last)
        way_out = death.way_out(last, otherwise="allow more with --restarts")
        if handle.was_silent:
            way_out = "allow a longer silence with --heartbeat-timeout"
        # One that was up may be building another strategy, and is in state STARTING again.
        why, was_up = f"{death}; {last}", state != WorkerState.STARTING or handle.notices_read
        restarts = self.plan.config.restarts
        handle.count_death(restarts, why, f"see {log}, or {way_out}", was_up=was_up)
        self.restarts += 1
        if not was_up and self.clock.has_started:
            self._pause(handle, why)
            return
        self._respawn(handle)
        if handle.respawn_s is None:
            self.report(f"{handle} died ({death}) and is being replaced")

    def _pause(self, handle: WorkerHandle, why: str) -> None:
        pause_s = min(MAX_PAUSE_S, 2.0 ** (handle.failed_starts - 1))
        handle.respawn_s = self._watched.look() + pause_s
        self.entry(handle).phase = WorkerPhase.STARTING  # it holds no ticket
        self.report(f"{handle} could not start ({why}); tried again in {pause_s:.0f} s")

    def _respawn(self, handle: WorkerHandle) -> None:
        """Start a worker's replacement; if the system starts no process now, later."""
        try:
            self._spawn(handle)
        except EnvironmentLacks as error:
            way_out, restarts = "allow more with --restarts", self.plan.config.restarts
            handle.count_death(restarts, str(error), way_out, was_up=False)
            self._pause(handle, str(error))

    def _halve(self, handle: WorkerHandle, cause: str, last: str) -> None:
        """Halve the micro-batch of a worker that the GPU watchdog ended."""
        if handle.halvings == MAX_HALVINGS:
            raise WorkerFailed(
                f"{cause} with ever smaller micro-batches, last line {last!r}; {HINTS}"
            )
        handle.halvings += 1
        n = self._job(handle.slot, handle.halvings).micro_batch
        self.report(
            f"{cause}, as happens on macOS when GPU work keeps the display waiting; it starts "
            f"again with micro-batches of {n} sequence{'s' * (n > 1)}. If this happens again, "
            f"{HINTS}"
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask all workers to leave, kill those that do not, and reap all."""
        self.arena.counters.store("command", ControlCommand.EXIT)
        deadline = monotonic_ns() + int(timeout_s * 1e9)
        with ExitStack() as reaps:  # all, whatever one of them raises
            if self.sidecar is not None:
                reaps.callback(self.sidecar.stop, min(timeout_s, SIDECAR_LEAVES_S))
            for handle in reversed(self.handles):
                handle.respawn_s = None
                if handle.slot in self.pool:
                    reaps.callback(self._reap_by, handle, deadline)

    def _reap_by(self, handle: WorkerHandle, deadline_ns: int) -> None:
        # A starting worker holds no ticket and would react late.
        starting = self.entry(handle).state == WorkerState.STARTING
        rest_s = (deadline_ns - monotonic_ns()) / 1e9
        self._reap(handle, 0.0 if starting else max(0.0, rest_s))

    # -- joining and leaving ---------------------------------------------------------------------

    def free_slots(self) -> list[int]:
        """Slots in which workers could join, unused ones first."""
        used = {handle.slot for handle in self.handles} | {self.sidecar and self.sidecar.slot}
        free = [entry for entry in self.arena.workers if entry.slot not in used]
        return [entry.slot for entry in sorted(free, key=lambda one: (one.generation, one.slot))]

    def join(self, workers: Sequence[tuple[int, WorkerSpec, str]]) -> None:
        """Start more workers: each has a free slot with its optimizer state, and its kernels.

        Raises:
            EnvironmentLacks: the system starts no process now; none of the workers has joined.
        """
        plan, n = self.plan, len(self.handles)
        try:
            for slot, spec, kernels in workers:
                self.plan = self.plan.with_worker(slot, spec, kernels)
                self.handles.append(WorkerHandle(slot, spec, joined=True))
                self._spawn(self.handles[-1])
        except BaseException:
            for handle in self.handles[n:]:
                if handle.slot in self.pool:
                    self._reap(handle)
                self.arena.workers.release(handle.slot)
            self.plan, self.handles[n:] = plan, []
            raise

    def leave(self, slot: int) -> None:
        """Let a worker finish its step and leave; `watch` reports its end."""
        (handle,) = [handle for handle in self.handles if handle.slot == slot]
        entry = self.entry(handle)
        if entry.state == WorkerState.RUNNING:
            handle.leaving_s = self._watched.look()
            entry.state = WorkerState.LEAVING
        else:  # it holds no ticket
            self._remove(handle)

    def cancel_starting(self) -> None:
        """End joining workers that have not started yet; no worker may begin a step meanwhile."""
        for handle in [handle for handle in self.handles if handle.joined and not handle.up]:
            if self.entry(handle).state != WorkerState.RUNNING:  # since the last look
                self._remove(handle)

    def _remove(self, handle: WorkerHandle, why: str = "") -> None:
        if handle.slot in self.pool:
            self._reap(handle)
        self.handles.remove(handle)
        self.removed += 1
        self.arena.workers.release(handle.slot)
        self._count()
        self.report(why or f"{handle} has left after {self.entry(handle).steps} steps")
