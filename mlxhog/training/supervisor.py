"""Spawn workers, watch them, replace dead ones, end them.

Only the supervisor reaps: it returns a worker's tickets and frees its locks only after `waitpid`
has reported its end. A worker keeps its slot through restarts and so inherits its predecessor's
optimizer state.

Workers may join and leave while others train. If a worker that has joined cannot start, or dies too
often, the run continues without it.
"""

from __future__ import annotations

import signal
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import connection
from pathlib import Path

from mlxhog.arena import Arena, event_log
from mlxhog.arena.control import Command
from mlxhog.arena.event_log import Begin
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, limit_in_words, monotonic_ns
from mlxhog.arena.published import Marks
from mlxhog.arena.worker_pool import Death, WorkerPool, WorkerProcess, last_lines
from mlxhog.arena.workers import MAX_NONFINITE, STILL, Entry, Phase, State
from mlxhog.base.durable import disk_errors
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.cluster.link import Link
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.strategies import Strategy, access_order
from mlxhog.training import worker
from mlxhog.training.job import Job
from mlxhog.training.terms import Terms

RESTART_WINDOW_S = 600.0
LINK_LEAVES_S = 1.0
LEAVE_S = 10.0  # how long a worker that leaves may take to finish its step
START_S = 120.0  # a framework that is being imported gives no sign of life
STALE_STEPS = 20  # no heartbeat for this many median steps counts as hung
SIDE_JOBS = (Phase.EVALUATE, Phase.SAMPLE)
EXIT_ERRORS = {2: ConfigError, 3: EnvironmentLacks}
WATCHDOG = (-signal.SIGABRT, worker.LOST_GPU_EXIT_CODE)
"""Exit codes of a GPU worker that macOS has ended."""


@dataclass
class _Seat:
    """A worker slot, and the state of the process in it."""

    slot: int
    spec: WorkerSpec
    deaths_s: deque[float] = field(default_factory=deque)
    halvings: int = 0
    joined: bool = False  # during the run
    up: bool = False  # the joined worker has started
    leaving_s: float | None = None  # start of its leaving, in watched time
    log_begin: int = 0  # of its newest process, in bytes
    notices_read: bool = False  # its notices were reported
    beat_ns: int = 0  # last observed heartbeat
    beat_seen_s: float = 0.0  # time of that observation, in watched time


class Supervisor:
    """The worker processes of one arena; used by one thread of one process."""

    def __init__(
        self,
        arena: Arena,
        ledger: Ledger,
        workers: Sequence[WorkerSpec],
        strategy: Strategy,
        config: TrainConfig,
        run_dir: Path,
        make_job: Callable[[int, int], Job],
        link: Link | None = None,
    ) -> None:
        """Prepare one seat per worker; this spawns no process.

        Args:
            arena: created by this process.
            ledger: the arena's ticket ledger.
            workers: backend and threads of each worker; worker k gets slot k + 1.
            strategy: of the run.
            config: limits restarts, heartbeats and steps that are not finite.
            run_dir: worker logs go to its `logs` folder.
            make_job: builds the job of a slot, its micro-batch halved a given number of times.
            link: of the run's cluster; None without one.
        """
        self.arena, self.ledger, self.run_dir = arena, ledger, run_dir
        self.strategy, self.config = strategy, config
        self.seats = [_Seat(slot=k + 1, spec=spec) for k, spec in enumerate(workers)]
        self.pool = WorkerPool()
        self._make_job, self.link = make_job, link
        self._watched = WatchedTime()
        self.restarts = 0
        self.removed = 0
        self.torn = 0
        self.messages: list[str] = []
        self.notices: dict[str, None] = {}  # of workers, each once, in order

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Spawn every worker."""
        with disk_errors(f"making the folder for the workers' logs in {self.run_dir}"):
            (self.run_dir / "logs").mkdir(exist_ok=True)
        if self.link is not None:
            if not (slots := self.free_slots()):
                raise ConfigError("the arena has no slot for the cluster's link; set --max-workers")
            self.link.start(slots[-1])
        for seat in self.seats:
            self._spawn(seat)
        self._count()

    def _count(self) -> None:
        """Store the number of workers, on which step sizes and predictions depend."""
        n = sum(seat.up or not seat.joined for seat in self.seats)
        self.arena.counters.store("workers", n)

    def _spawn(self, seat: _Seat) -> None:
        log = self._log(seat.slot)
        seat.log_begin, seat.notices_read = log.stat().st_size if log.exists() else 0, False
        job = self._make_job(seat.slot, seat.halvings)
        if self.config.determinism == "record":
            begin = Begin(job.spec.backend, job.spec.threads, job.kernels)
            event_log.append(event_log.worker_path(self.run_dir, seat.slot), begin)
        self.pool[seat.slot] = WorkerProcess(
            worker.main,
            (job,),
            name=f"mlxhog-worker-{seat.slot}",
            threads=seat.spec.threads,
            arena=self.arena,
            slots=(seat.slot,),
        )

    def poll(self, timeout_s: float) -> None:
        """Wait until a worker dies or the time is over; reap and replace the dead.

        Raises:
            WorkerFailed: a worker met an error that a restart cannot cure, or died more often than
                `config.restarts` in ten minutes.
            Diverged: `MAX_NONFINITE` gradients in a row were not finite.
            ConfigError, EnvironmentLacks: a worker cannot start here; the message is its own.
        """
        self._kill_stale()
        dead = self.pool.wait(timeout_s)
        if self.link is not None:
            self.link.poll()
            self.messages += self.link.messages
            self.link.messages.clear()
        for seat in list(self.seats):
            if seat.slot in dead:
                self._settle(seat)
                continue
            if not seat.notices_read and self.entry(seat).state == State.RUNNING:
                seat.notices_read = True
                notices = worker.read_notices(self._log(seat.slot), seat.log_begin)
                self.messages += notices
                self.notices |= dict.fromkeys(notices)
                if seat.joined and not seat.up:
                    seat.up = True
                    self._count()
                    self.messages.append(f"{_name(seat)} has joined")
            if self.entry(seat).nonfinite_in_row >= MAX_NONFINITE:
                raise Diverged(
                    f"{_name(seat)} computed "
                    f"{self.entry(seat).nonfinite_in_row} non-finite gradients in a row; lower "
                    "--lr or --clip, then --resume from the last checkpoint"
                )
        self.ledger.sweep_orphans()

    def entry(self, seat: _Seat) -> Entry:
        """The worker table entry of a seat."""
        return self.arena.workers.entry(seat.slot)

    def _reap(self, seat: _Seat, timeout_s: float = 0.0) -> Death:
        """Free the tickets and locks of a dead worker; kill it first after `timeout_s`."""
        entry = self.entry(seat)
        if self.config.determinism == "record":
            self.pool[seat.slot].end(timeout_s)
            died = entry.state not in (State.FINISHED, State.LEAVING)
            access_order.settle(self.arena, self.run_dir, seat.slot, died=died)
        death = self.pool.reap(seat.slot, timeout_s)
        report = self.ledger.reap(entry.incarnation)
        entry.torn += report.torn
        self.torn += report.torn
        # If all write an update together, the replacement finishes it.
        if self.strategy.between_steps(self.arena):
            Marks(self.arena, seat.slot).end_update()
        return death

    def _settle(self, seat: _Seat) -> None:
        """Replace a worker that has ended; remove one that was leaving, or joined and fails."""
        if seat.leaving_s is not None:
            self._remove(seat)
            return
        try:
            self._replace(seat)
        except (ConfigError, EnvironmentLacks, WorkerFailed) as error:
            is_last = all(other is seat or other.leaving_s is not None for other in self.seats)
            if is_last or not seat.joined:
                raise
            self._remove(seat, f"{error}; the run continues without it")

    def _replace(self, seat: _Seat) -> None:
        state = self.entry(seat).state
        death = self._reap(seat)
        if state == State.FINISHED or self.arena.counters.load("command") == Command.EXIT:
            return
        what = _name(seat)
        if state == State.STARTING and death.code in EXIT_ERRORS:
            raise EXIT_ERRORS[death.code](f"{what} cannot start: {self.last_line(seat.slot)}")
        if death.is_fault:
            raise WorkerFailed(
                f"{what} met an error that a restart cannot cure: {self.last_line(seat.slot)}; see "
                f"{self._log(seat.slot)}, and please report it"
            )
        now = monotonic_ns() / 1e9
        seat.deaths_s.append(now)
        # A worker that never starts is given up, however long each attempt takes.
        while state != State.STARTING and seat.deaths_s[0] < now - RESTART_WINDOW_S:
            seat.deaths_s.popleft()
        if seat.spec.backend in GPU_BACKENDS and death.code in WATCHDOG:
            lost = f"lost its GPU ({self.last_line(seat.slot)})"
            self._ease(seat, f"{what} {lost if death.code > 0 else 'was aborted (SIGABRT)'}")
        if len(seat.deaths_s) > self.config.restarts:
            raise WorkerFailed(
                f"{what} died {len(seat.deaths_s)} times in {RESTART_WINDOW_S / 60:.0f} minutes "
                f"(last: {death}; {self.last_line(seat.slot)}){limit_in_words()}; see "
                f"{self._log(seat.slot)}, or allow more with --restarts"
            )
        self.restarts += 1
        self.messages.append(f"{what} died ({death}) and is being replaced")
        self._spawn(seat)

    def _ease(self, seat: _Seat, cause: str) -> None:
        """Halve the micro-batch of a worker that the GPU watchdog ended."""
        if seat.halvings == worker.MOST_HALVINGS:
            raise WorkerFailed(
                f"{cause} with ever smaller micro-batches, last line "
                f"{self.last_line(seat.slot)!r}; {worker.HINTS}"
            )
        seat.halvings += 1
        n = self._make_job(seat.slot, seat.halvings).micro_batch
        self.messages.append(
            f"{cause}, as happens on macOS when GPU work keeps the display waiting; it starts "
            f"again with micro-batches of {n} sequence{'s' * (n > 1)}. If this happens again, "
            f"{worker.HINTS}"
        )

    def all_built(self) -> bool:
        """Whether every worker has built the present strategy; one that starts will build it."""
        terms = Terms(self.arena)

        def is_built(seat: _Seat) -> bool:
            return self.entry(seat).state == State.STARTING or terms.is_built(seat.slot)

        return self._twice(lambda: [is_built(seat) for seat in self.seats])

    # -- joining and leaving ---------------------------------------------------------------------

    def free_slots(self) -> list[int]:
        """Slots in which workers could join, unused ones first."""
        used = {seat.slot for seat in self.seats} | {self.link.slot if self.link else None}
        free = [entry for entry in self.arena.workers if entry.slot not in used]
        return [entry.slot for entry in sorted(free, key=lambda one: (one.generation, one.slot))]

    def join(self, slot: int, spec: WorkerSpec) -> None:
        """Spawn one more worker, in a free slot whose optimizer state is in place."""
        seat = _Seat(slot, spec, joined=True)
        self.seats.append(seat)
        self._spawn(seat)

    def leave(self, slot: int) -> None:
        """Let a worker finish its step and leave; `poll` reports its end."""
        (seat,) = [seat for seat in self.seats if seat.slot == slot]
        entry = self.entry(seat)
        if entry.state == State.RUNNING:
            seat.leaving_s = self._watched.look()
            entry.state = State.LEAVING
        else:  # it holds no ticket
            self._remove(seat)

    def dismiss_starting(self) -> None:
        """End joining workers that have not started yet."""
        for seat in [seat for seat in self.seats if seat.joined and not seat.up]:
            self._remove(seat)

    def _remove(self, seat: _Seat, why: str | None = None) -> None:
        """Remove a seat: its process ends now, without a replacement."""
        if seat.slot in self.pool:
            self._reap(seat)
        self.seats.remove(seat)
        self.removed += 1
        self.arena.workers.release(seat.slot)
        self._count()
        steps = self.entry(seat).steps
        self.messages.append(why or f"{_name(seat)} has left after {steps} steps")

    def _kill_stale(self) -> None:
        """Kill workers without a heartbeat for too long; poll then reaps them."""
        steps_s = [
            (entry.read_ns + entry.compute_ns + entry.apply_ns) / entry.steps / 1e9
            for entry in map(self.entry, self.seats)
            if entry.steps
        ]
        limit_s = self.config.heartbeat_timeout_s
        if steps_s:
            limit_s = max(limit_s, STALE_STEPS * statistics.median(steps_s))
        now_s = self._watched.look()
        for seat in self.seats:
            entry = self.entry(seat)
            if entry.heartbeat_ns != seat.beat_ns:
                seat.beat_ns, seat.beat_seen_s = entry.heartbeat_ns, now_s
            silent_s = now_s - seat.beat_seen_s
            allowed_s = max(limit_s, START_S) if entry.state == State.STARTING else limit_s
            if silent_s > allowed_s and seat.slot in self.pool and self.pool[seat.slot].is_alive():
                self.messages.append(
                    f"{_name(seat)} gave no sign of life for "
                    f"{silent_s:.0f} s in phase {Phase(entry.phase).name.lower()}; killed"
                )
                self.pool[seat.slot].kill()
            late = seat.leaving_s is not None and now_s - seat.leaving_s > LEAVE_S
            if late and seat.slot in self.pool and self.pool[seat.slot].is_alive():
                self.pool[seat.slot].kill()

    # -- state -----------------------------------------------------------------------------------

    def command(self, command: Command) -> None:
        """Set the command for all workers."""
        self.arena.counters.store("command", command)

    def ready(self) -> bool:
        """Whether every worker is up, and the link of a cluster has data for them."""
        return (self.link is None or self.link.is_ready) and all(
            self.entry(seat).state == State.RUNNING for seat in self.seats
        )

    def ends(self) -> int:
        """Number of ended workers, which may have left accepted jobs undone."""
        return self.restarts + self.removed

    def has_workers(self) -> bool:
        """Whether any worker process is there; `poll` replaces dead ones."""
        return bool(self.pool)

    def resting(self) -> bool:
        """Whether every worker is up and none is inside a step or an evaluation.

        A dead or starting worker does not rest: it may have left work half done that others wait
        for.
        """
        return self._twice(lambda: [*map(self._rests, self.seats), self._link_is_still()])

    def holding_still(self) -> bool:
        """Whether no worker changes the state of a checkpoint while `pause` is set.

        All others may be waiting for a starting worker, but not in a step that they do together. A
        worker that evaluates or samples holds no ticket and writes nothing of a checkpoint. It
        claims next, and every `claim` checks `pause` before a change, except for its part in a
        joint step (`between_steps`).
        """

        def look() -> list[bool]:
            entries = [self.entry(seat) for seat in self.seats]
            still = [e.phase in STILL for e in entries]
            return [*still, self.strategy.between_steps(self.arena), self._link_is_still()]

        return self._twice(look)

    def _link_is_still(self) -> bool:
        return self.link is None or self.link.still()

    def has_side_job(self) -> bool:
        """Whether a worker evaluates or samples; this ends by itself."""
        return any(self.entry(seat).phase in SIDE_JOBS for seat in self.seats)

    def _rests(self, seat: _Seat) -> bool:
        entry = self.entry(seat)
        return entry.state == State.RUNNING and entry.phase == Phase.IDLE

    def _twice(self, look: Callable[[], list[bool]]) -> bool:
        """Whether all are true twice, with no step of any worker in between."""

        def steps() -> list[tuple[int, int]]:
            return [(self.entry(seat).steps, self.entry(seat).state) for seat in self.seats]

        before = steps()
        if not all(look()):
            return False
        connection.wait([], timeout=0.02)
        return all(look()) and before == steps()

    def _log(self, slot: int) -> Path:
        return self.run_dir / "logs" / f"worker-{slot}.log"

    def last_line(self, slot: int) -> str:
        """The last line of a worker's log."""
        log = self._log(slot)
        with log.open("rb") if log.exists() else BytesIO() as output:
            return last_lines(output)[-1]

    # -- end -------------------------------------------------------------------------------------

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask all workers to leave, kill those that do not, and reap all."""
        self.command(Command.EXIT)
        deadline = monotonic_ns() + int(timeout_s * 1e9)
        for seat in self.seats:
            if seat.slot in self.pool:
                # A starting worker holds no ticket and would react late.
                starting = self.entry(seat).state == State.STARTING
                rest_s = (deadline - monotonic_ns()) / 1e9
                self._reap(seat, 0.0 if starting else max(0.0, rest_s))
        if self.link is not None:
            self.link.stop(min(timeout_s, LINK_LEAVES_S))

    def abandon(self) -> None:
        """End every worker that does not rest, at once and without a replacement.

        Its ticket is returned; the others continue.
        """
        for seat in self.seats:
            if seat.slot in self.pool and not self._rests(seat):
                phase = Phase(self.entry(seat).phase).name.lower()
                self.messages.append(f"{_name(seat)} was still in phase {phase}; ended")
                self._reap(seat)
        if self.link is not None and not self.link.still():
            self.link.stop(0.0)

    def kill(self) -> None:
        """End every worker at once and reap it."""
        self.stop(timeout_s=0.0)


def _name(seat: _Seat) -> str:
    return f"worker {seat.slot} ({seat.spec.backend})"
