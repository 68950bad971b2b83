"""The worker processes of a run: spawned, watched, replaced, ended.

Only this process reaps: it returns a worker's tickets and frees its locks only after `waitpid` has
reported its end. A worker keeps its slot through restarts and so inherits its predecessor's
optimizer state. A replacement that cannot start is tried again after a pause, which doubles: what
the machine lacks now it may have then. Workers may join and leave while others train. If a worker
that has joined cannot start, or dies too often, the run continues without it.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from mlxhog.arena import Arena
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.workers import MAX_NONFINITE, WorkerPhase, WorkerState
from mlxhog.base.child_processes import Death, WorkerPool, WorkerProcess, last_lines_of
from mlxhog.base.durable import disk_errors
from mlxhog.base.inside import subfolder
from mlxhog.base.workers import WorkerSpec
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError, Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.training.plan.job import HINTS, METAL_EXIT_CODE, Job
from mlxhog.training.plan.values import Plan, sequences_text
from mlxhog.training.supervisor.handles import WorkerHandle
from mlxhog.training.worker import process

if TYPE_CHECKING:  # only runs of a cluster load it
    from mlxhog.cluster.sidecar import Sidecar

SIDECAR_LEAVES_S = 1.0
MAX_RETRY_S = 30.0  # before a replacement that could not start is tried again
LEAVE_S = 10.0  # how long a worker that leaves may take to finish its step
STALE_STEPS = 20  # no heartbeat for this many median steps counts as hung

P = TypeVar("P", bound=Plan)


class Workers(Generic[P]):
    """The worker processes of an arena, and the sidecar of its cluster; for one thread."""

    def __init__(
        self, plan: P, run_dir: Path, arena: Arena, ledger: Ledger, clock: Clock, report: Tell
    ) -> None:
        """Spawn no process yet. Logs of workers go to the folder `logs` of `run_dir`."""
        self.plan = plan  # with the present strategy, and those that have joined
        self.budget = plan.budget  # of this call, in steps of the present strategy
        self.steps_allowed: int | None = None  # that the present strategy may take
        self.run_dir, self.report = run_dir, report
        self._arena, self._ledger, self._clock = arena, ledger, clock
        self.handles = [
            WorkerHandle(arena.workers.entry(slot), spec)
            for slot, spec in enumerate(plan.workers, start=1)
        ]
        self.pool = WorkerPool()
        self.sidecar: Sidecar | None = None
        if plan.sidecar is not None:
            from mlxhog.cluster.sidecar import Sidecar

            log = run_dir / "logs" / "sidecar.log"
            self.sidecar = Sidecar(arena, replace(plan.sidecar, log=log))
        self.restarts = self.removed = 0  # replaced workers, and those that left or were evicted
        self.torn = 0  # batches that died half applied
        self.notices: dict[str, None] = {}  # of workers, each once, in order
        self._watched = WatchedTime()

    def ready(self) -> bool:
        """Whether every worker is up, and the sidecar of a cluster has data for them."""
        return (self.sidecar is None or self.sidecar.is_ready) and all(
            handle.entry.state == WorkerState.RUNNING for handle in self.handles
        )

    def has_any(self) -> bool:
        """Whether a worker process exists, or is to be started again."""
        return bool(self.pool) or any(handle.respawn_s is not None for handle in self.handles)

    def in_step(self) -> list[WorkerHandle]:
        """Workers, dead ones included, that are inside a step or an evaluation."""
        inside = [one for one in self.handles if one.slot in self.pool and not one.is_idle]
        return [one for one in inside if one.entry.state != WorkerState.STARTING]

    def n_ended(self) -> int:
        """Number of ended workers, which may have left background tasks undone."""
        return self.restarts + self.removed

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
        job = self.job(handle.slot, handle.halvings, handle.is_eager)
        if self.plan.config.determinism == "record":
            from mlxhog.arena import event_log

            begin = event_log.Begin(job.spec.backend, job.spec.threads, job.kernels)
            event_log.append(event_log.worker_path(self.run_dir, handle.slot), begin)
        self.pool[handle.slot] = WorkerProcess(
            process.main,
            (job,),
            name=f"mlxhog-worker-{handle.slot}",
            threads=handle.spec.threads,
            table=self._arena.workers,
            slot=handle.slot,
        )

    def job(self, slot: int, halvings: int = 0, is_eager: bool = False) -> Job:
        """Return the job of the worker in a slot by the present plan."""
        return Job(
            plan=self.plan,
            handle=self._arena.handle(),
            slot=slot,
            run_dir=self.run_dir,
            budget=self.budget,
            step_limit=self.steps_allowed,
            halvings=halvings,
            is_eager=is_eager,
        )

    def are_parked(self) -> bool:
        """Let quiesced workers leave their strategy; returns whether all wait for a job.

        One that is still starting, or has died meanwhile, has no job from now on.
        """
        if any(handle.leaving_s is not None for handle in self.handles):
            return False
        for handle in self.handles:
            if handle.entry.state == WorkerState.RUNNING:
                handle.entry.state, handle.parked = WorkerState.STARTING, True
        parked = [handle for handle in self.handles if handle.parked]
        if any(handle.entry.phase != WorkerPhase.STARTING for handle in parked):
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
            job = replace(self.job(handle.slot, handle.halvings, handle.is_eager), handle=None)
            message = self.pool[handle.slot].pipe, bytes(ForkingPickler.dumps(job))
            threading.Thread(target=send, args=message, daemon=True).start()

    def _count(self) -> None:
        """Store the number of workers, on which learning rates and predictions depend."""
        n = sum(handle.up or not handle.joined for handle in self.handles)
        self._arena.counters.store("workers", n)

    def watch(self, wait_s: float) -> None:
        """Wait, or until a worker dies; reap and replace the dead.

        Raises:
            WorkerFailed: a worker met an error that a restart cannot cure, or died more often than
                `config.restarts` in ten minutes.
            Diverged: `MAX_NONFINITE` gradients in a row were not finite.
            ConfigError, EnvironmentLacks: a first worker cannot start; the message is its own.
        """
        self._kill_silent()
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
            if not handle.notices_read and handle.entry.state == WorkerState.RUNNING:
                self._read_notices(handle)
            if (in_row := handle.entry.nonfinite_in_row) >= MAX_NONFINITE:
                raise Diverged(
                    f"{handle} computed {in_row} non-finite gradients in a row; "
                    "lower --lr or --clip, then --resume from the last checkpoint"
                )
        self._ledger.sweep_orphans()

    def _read_notices(self, handle: WorkerHandle) -> None:
        handle.notices_read = True
        with suppress(EOFError, OSError):  # it has died since
            for notice in self.pool[handle.slot].pipe.recv():
                self.notices[notice] = None
                self.report(notice)
        if handle.joined and not handle.up:
            handle.up = True
            self._count()
            self.report(f"{handle} has joined")

    def _kill_silent(self) -> None:
        """Kill workers without a heartbeat for too long; `watch` then reaps them."""
        limit_s = self.plan.config.heartbeat_timeout
        if steps_s := [handle.entry.step_s for handle in self.handles if handle.entry.steps]:
            limit_s = max(limit_s, STALE_STEPS * statistics.median(steps_s))
        now_s = self._watched.look()
        for handle in self.handles:
            entry = handle.entry
            silent_s = handle.heartbeat.silent_s(entry.heartbeat_ns, now_s)
            is_silent = silent_s > handle.max_silent_s(limit_s)
            is_late = handle.leaving_s is not None and now_s - handle.leaving_s > LEAVE_S
            worker = self.pool.get(handle.slot)
            if (is_late or is_silent) and worker is not None and worker.is_alive():
                worker.kill()
                if not is_late:
                    handle.was_silent = True
                    first = "" if entry.steps else ", before its first step was done"
                    self.report(
                        f"{handle} had no heartbeat for {silent_s:.0f} s in phase "
                        f"{WorkerPhase(entry.phase).name.lower()}{first}; killed (a slow machine "
                        "may need more: --heartbeat-timeout)"
                    )

    def _reap(self, handle: WorkerHandle, timeout_s: float = 0.0) -> Death:
        """Free the tickets and locks of a dead worker; kill it first after `timeout_s`."""
        if self.plan.config.determinism == "record":
            from mlxhog.strategies import recorded

            self.pool[handle.slot].end(timeout_s)
            recorded.settle(self._arena, self.run_dir, handle.slot)
        death = self.pool.reap(handle.slot, timeout_s)
        report = self._ledger.reap(handle.entry.incarnation)
        handle.entry.torn += report.torn
        self.torn += report.torn
        # If all write an update together, the replacement finishes it; others do if all may leave.
        strategy = self.plan.strategy
        if not strategy.fixed or strategy.between_steps(self._arena):
            SeqlockCounters(self._arena, handle.slot).end_update()
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
        state = handle.entry.state
        death = self._reap(handle)
        is_over = self._arena.counters.load("command") == ControlCommand.EXIT
        if is_over or state == WorkerState.FINISHED:
            return
        log = self.job(handle.slot).log
        last, starts = last_lines_of(log)[-1], state == WorkerState.STARTING
        is_first = starts and (not self._clock.has_started or (handle.joined and not handle.up))
        # One that was up may be building another strategy, and is in state STARTING again.
        was_up, config = not starts or handle.notices_read, self.plan.config
        lost = handle.judge(death, last, log, config, is_first=is_first, was_up=was_up)
        if death.code == METAL_EXIT_CODE:
            self.notices[text := f"{handle} continues with eager operators only: {last}"] = None
            self.report(text)
        if lost is not None:
            n = self.job(handle.slot, handle.halvings, handle.is_eager).micro_batch
            self.report(
                f"{lost}, as happens on macOS when GPU work keeps the display waiting; it "
                f"starts again with micro-batches of {sequences_text(n)}. If this happens again, "
                f"{HINTS}"
            )
        self.restarts += 1
        if not was_up and self._clock.has_started:
            self._retry_later(handle, f"{death}; {last}")
            return
        self._respawn(handle)
        if handle.respawn_s is None:
            self.report(f"{handle} died ({death}) and is being replaced")

    def _retry_later(self, handle: WorkerHandle, why: str) -> None:
        pause_s = min(MAX_RETRY_S, 2.0 ** (handle.failed_starts - 1))
        handle.respawn_s = self._watched.look() + pause_s
        handle.entry.phase = WorkerPhase.STARTING  # it holds no ticket
        self.report(f"{handle} could not start ({why}); tried again in {pause_s:.0f} s")

    def _respawn(self, handle: WorkerHandle) -> None:
        """Start a worker's replacement; if the system starts no process now, later."""
        try:
            self._spawn(handle)
        except EnvironmentLacks as error:
            way_out, restarts = "allow more with --restarts", self.plan.config.restarts
            handle.count_death(restarts, str(error), way_out, was_up=False)
            self._retry_later(handle, str(error))

    def cancel(self, handle: WorkerHandle) -> None:
        """End a worker at once and without a replacement; its ticket is returned."""
        if handle.slot in self.pool:
            self._reap(handle)
        handle.respawn_s, handle.cancelled = None, True

    def revive(self) -> bool:
        """Start a worker again if none is left, to evaluate; returns whether there is one.

        A worker that was late, and those that waited for it inside a step, were cancelled.
        """
        if not self.has_any():
            try:
                self._spawn(self.handles[0])
            except EnvironmentLacks as error:
                self.report(f"no worker is left to evaluate the end: {error}")
        return self.has_any()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask all workers to leave, kill those that do not, and reap all."""
        self._arena.counters.store("command", ControlCommand.EXIT)
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
        starting = handle.entry.state == WorkerState.STARTING
        left_s = (deadline_ns - monotonic_ns()) / 1e9
        self._reap(handle, 0.0 if starting else max(0.0, left_s))

    def free_slots(self) -> list[int]:
        """Slots in which workers could join: unused ones first, in the order of the plan."""
        taken = {one.slot for one in (*self.handles, self.sidecar) if one is not None}
        free = [entry for entry in self._arena.workers if entry.slot not in taken]
        n = len(self.plan.workers)  # a slot after them may have a generation that never began
        free.sort(key=lambda one: (one.slot <= n, one.slot <= n and one.generation, one.slot))
        return [entry.slot for entry in free]

    def join(self, workers: Sequence[tuple[int, WorkerSpec, str]]) -> None:
        """Start more workers: each has a free slot with its optimizer state, and its kernels.

        Raises:
            EnvironmentLacks: the system starts no process now; none of the workers has joined.
        """
        plan, n, table = self.plan, len(self.handles), self._arena.workers
        try:
            for slot, spec, kernels in workers:
                self.plan = self.plan.with_worker(slot, spec, kernels)
                self.handles.append(WorkerHandle(table.entry(slot), spec, joined=True))
                self._spawn(self.handles[-1])
        except BaseException:
            for handle in self.handles[n:]:
                if handle.slot in self.pool:
                    self._reap(handle)
                table.release(handle.slot)
            self.plan, self.handles[n:] = plan, []
            raise

    def leave(self, slot: int) -> None:
        """Let a worker finish its step and leave; `watch` reports its end."""
        (handle,) = [handle for handle in self.handles if handle.slot == slot]
        if handle.entry.state == WorkerState.RUNNING:
            handle.leaving_s = self._watched.look()
            handle.entry.state = WorkerState.LEAVING
        else:  # it holds no ticket
            self._remove(handle)

    def cancel_starting(self) -> None:
        """End joining workers that have not started yet; no worker may begin a step meanwhile."""
        for handle in [handle for handle in self.handles if handle.joined and not handle.up]:
            if handle.entry.state != WorkerState.RUNNING:  # since the last look
                self._remove(handle)

    def _remove(self, handle: WorkerHandle, why: str = "") -> None:
        if handle.slot in self.pool:
            self._reap(handle)
        self.handles.remove(handle)
        self.removed += 1
        self._arena.workers.release(handle.slot)
        self._count()
        self.report(why or f"{handle} has left after {handle.entry.steps} steps")
