"""The worker processes of a run and their arena: spawned, watched, replaced, commanded, ended.

The caller fills the arena, then calls `begin`, `spawn` and `train`; `poll` and `until` watch the
workers meanwhile. `train` and the candidates of MAD have subclasses of their own.

Only this process reaps: it returns a worker's tickets and frees its locks only after `waitpid` has
reported its end. A worker keeps its slot through restarts and so inherits its predecessor's
optimizer state. Workers may join and leave while others train. If a worker that has joined cannot
start, or dies too often, the run continues without it.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena import Arena, event_log
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import WatchedTime, limit_in_words, monotonic_ns
from mlxhog.arena.published import Marks
from mlxhog.arena.worker_pool import Death, WorkerPool, WorkerProcess, last_lines
from mlxhog.arena.workers import MAX_NONFINITE, STILL, Entry, Phase, State
from mlxhog.base.durable import disk_errors
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.errors import ConfigError, Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.report.metrics import Activity, Doing
from mlxhog.strategies import Strategy, recorded
from mlxhog.training import worker
from mlxhog.training.job import Job, Plan, store_limits

if TYPE_CHECKING:  # only runs of a cluster load it
    from mlxhog.cluster.link import Link

FIRST_WAIT_S = 0.004
LONGER = 1.25  # growth of the waits in a phase, so that a short phase ends without delay
PAUSE_S = 10.0  # least time that workers have to finish their current step
RESTART_WINDOW_S = 600.0
LINK_LEAVES_S = 1.0
LEAVE_S = 10.0  # how long a worker that leaves may take to finish its step
START_S = 120.0  # a framework that is being imported gives no sign of life
STALE_STEPS = 20  # no heartbeat for this many median steps counts as hung
EXIT_ERRORS = {2: ConfigError, 3: EnvironmentLacks}
WATCHDOG = (-signal.SIGABRT, worker.LOST_GPU_EXIT_CODE)
"""Exit codes of a GPU worker that macOS has ended."""


@dataclass
class Seat:
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

    def __str__(self) -> str:
        """Its name in messages."""
        return f"worker {self.slot} ({self.spec.backend})"


class Session(ABC):
    """An arena and its workers; used by one thread of one process.

    Subclasses define the messages (`report`), the reading of records (`drain`) and the interrupts.

    Attributes:
        plan: of the run, with its present strategy and workers.
        budget: of this call, in steps of the present strategy.
        step_limit: steps that this call may take; None for no limit.
        seats: of the workers; those of the start have slots 1, 2, ...
        link: of the run's cluster; None without one.
        restarts, removed, torn: number of replaced workers, of workers that have left or were
            given up, and of batches that died half applied.
        notices: of workers, each once, in order.
    """

    poll_s = 0.05  # longest wait for the death of a worker; the first waits of a phase are shorter
    plan: Plan

    def __init__(
        self, plan: Plan, run_dir: Path, *, stack: ExitStack, fallback: Path | None = None
    ) -> None:
        """Create the arena, which the caller fills; this spawns no process.

        Args:
            plan: of the run.
            run_dir: worker logs go to its `logs` folder.
            stack: on close, kills the workers and closes the arena.
            fallback: folder for the arena if shared memory is too small.
        """
        # The parts refer to each other and to the arena: this frees them with the run, without a
        # wait for the garbage collector.
        stack.callback(vars(self).clear)
        self.plan, self.run_dir, self.budget = plan, run_dir, plan.budget
        self.step_limit: int | None = None
        self.arena = stack.enter_context(
            Arena.create(plan.layout, write=plan.writers.write, fallback=fallback)
        )
        self.ledger = Ledger(self.arena)
        self.seats = [Seat(slot, spec) for slot, spec in enumerate(plan.workers, start=1)]
        self.pool = WorkerPool()
        self.link: Link | None = None
        if plan.link is not None:
            from mlxhog.cluster.link import Link

            log = run_dir / "logs" / "link.log"
            self.link = Link(self.arena, replace(plan.link, log=log))
        self.restarts = self.removed = self.torn = 0
        self.notices: dict[str, None] = {}
        self._watched, self._wait_s = WatchedTime(), FIRST_WAIT_S
        stack.callback(self.stop, 0.0)

    @abstractmethod
    def report(self, message: str) -> None:
        """Show the user a message."""

    @abstractmethod
    def drain(self) -> None:
        """Read the records of workers."""

    def interrupts(self) -> int:
        """Number of the user's interrupts."""
        return 0

    @property
    def strategy(self) -> Strategy:
        """The present strategy."""
        return self.plan.strategy

    # -- phases ----------------------------------------------------------------------------------

    def begin(self, step_limit: int | None, until: int | None = None) -> None:
        """Set the limits, after the arena is filled and before workers start.

        Args:
            step_limit: steps that this call may take; None for no limit.
            until: steps after which the strategy changes, where that is known.
        """
        self.step_limit = step_limit
        limits = [n for n in (step_limit, until) if n is not None]
        self._limit(min(limits, default=None))

    def _limit(self, steps: int | None, done: int = 0) -> None:
        self.strategy.limit_steps(self.arena, self.ledger, steps, done)
        store_limits(self.arena.counters, self.budget, steps)

    def spawn(self) -> None:
        """Start every worker, and the link of a cluster."""
        with disk_errors(f"making the folder for the workers' logs in {self.run_dir}"):
            (self.run_dir / "logs").mkdir(exist_ok=True)
        if self.link is not None:
            if not (slots := self.free_slots()):
                raise ConfigError("the arena has no slot for the cluster's link; set --max-workers")
            self.link.start(slots[-1])
        for seat in self.seats:
            self._spawn(seat)
        self._count()

    def train(self) -> int:
        """Let workers train; returns the start of training in monotonic nanoseconds."""
        began_ns = monotonic_ns()
        self._wait_s = FIRST_WAIT_S
        self.arena.counters.store("start_ns", began_ns)
        self.command(Command.TRAIN)
        return began_ns

    def change(self, budget: Budget, done: int, tokens: int) -> None:
        """Continue with the other strategy, for which the arena is filled; all hold still.

        Workers must hold still until each has built it (`all_built`).

        Args:
            budget: of this call.
            done: steps of this call so far.
            tokens: in them.
        """
        self.plan, self.budget = self.plan.changed(), budget
        limit = budget.step_limit(self.strategy.tokens_per_step, steps=done, tokens=tokens)
        self.step_limit = limit
        self.arena.counters.store("first_ticket", self.ledger.watermark)
        self._limit(None if limit is None else limit - done, done)
        self.arena.counters.add("strategy", 1)  # after the limits, which workers read

    def all_built(self) -> bool:
        """Whether every worker has built the present strategy; one that starts will build it."""
        changes = self.arena.counters.load("strategy")
        entries = [self.entry(seat) for seat in self.seats]
        return self._twice(
            lambda: [one.state == State.STARTING or one.changes == changes for one in entries]
        )

    def command(self, command: Command) -> None:
        """Set the command for all workers."""
        self.arena.counters.store("command", command)

    def ask(self, what: str) -> None:
        """Ask the next worker that finishes a step for an "eval" or a "sample"."""
        counters = self.arena.counters
        counters.store(f"{what}_asked", counters.load(f"{what}_taken") + 1)

    def steps_done(self) -> int:
        """Number of finished steps, exact even after deaths of workers."""
        return self.strategy.steps_done(self.arena, self.ledger)

    def settle(self) -> None:
        """Bring parameters and counters up to date; no worker may move."""
        self.strategy.settle(self.arena, self.ledger)

    def pause_limit_s(self) -> float:
        """Return how long workers may take to pause.

        This is the sum of their step times (strategy locked runs one at a time) plus the slowest
        once more, at least `PAUSE_S`.
        """
        steps_s = [entry.step_s for entry in self.arena.workers if entry.state != State.FREE]
        return max(PAUSE_S, sum(steps_s) + max(steps_s, default=0.0))

    @contextmanager
    def paused(self, why: Activity = Activity.PAUSING) -> Iterator[bool]:
        """Pause all workers after their step; yields whether they paused within `pause_limit_s`.

        The limit is longer for a worker that evaluates or samples: if all do a step together, the
        others wait for it within the step. `why` is shown to the user.
        """
        counters, interrupts = self.arena.counters, self.interrupts()
        counters.store("pause", 1)
        try:
            while True:
                still = self.until(self.holding_still, Doing(why), self.pause_limit_s())
                if still or self.interrupts() > interrupts or not self.has_side_job():
                    break
            yield still
        finally:
            counters.store("pause", 0)

    def abandon(self) -> None:
        """End every worker that does not rest, at once and without a replacement.

        Its ticket is returned; the others continue.
        """
        for seat in self.seats:
            if seat.slot in self.pool and not self._rests(seat):
                phase = Phase(self.entry(seat).phase).name.lower()
                self._reap(seat)
                self.report(f"{seat} was still in phase {phase}; ended")
        if self.link is not None and not self.link.still():
            self.link.stop(0.0)

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

    # -- watching --------------------------------------------------------------------------------

    def until(
        self,
        condition: Callable[[], bool],
        doing: Doing | Callable[[], Doing],
        limit_s: float = math.inf,
        *,
        even_if_interrupted: bool = False,
    ) -> bool:
        """Watch workers until a condition holds; returns whether it does.

        Args:
            condition: called repeatedly.
            doing: activity that is shown to the user.
            limit_s: longest wait, in time that workers were watched.
            even_if_interrupted: whether the wait continues after a first interrupt.

        Raises:
            WorkerFailed: no worker is left that could make the condition true.
        """
        watched, interrupts = WatchedTime(), self.interrupts()
        self._wait_s = FIRST_WAIT_S
        while not condition():
            if watched.look() > limit_s:
                return False
            if self.interrupts() > interrupts and not even_if_interrupted:
                return False
            activity = doing if isinstance(doing, Doing) else doing()
            if not self.pool:
                raise WorkerFailed(f"no worker is left for {activity}")
            self.poll(activity)
        return True

    def poll(self, doing: Doing | None = None) -> None:
        """Wait a moment, or until a worker dies; reap and replace the dead, and read records.

        Args:
            doing: activity that is shown to the user; None is training.

        Raises:
            WorkerFailed: a worker met an error that a restart cannot cure, or died more often than
                `config.restarts` in ten minutes.
            Diverged: `MAX_NONFINITE` gradients in a row were not finite.
            ConfigError, EnvironmentLacks: a worker cannot start here; the message is its own.
        """
        self._kill_stale()
        dead = self.pool.wait(self._wait_s)
        self._wait_s = min(self.poll_s, LONGER * self._wait_s)
        if self.link is not None:
            self.link.poll()
            while self.link.messages:
                self.report(self.link.messages.pop(0))
        for seat in list(self.seats):
            if seat.slot in dead:
                self._replace_or_remove(seat)
                continue
            entry = self.entry(seat)
            if not seat.notices_read and entry.state == State.RUNNING:
                self._welcome(seat)
            if entry.nonfinite_in_row >= MAX_NONFINITE:
                raise Diverged(
                    f"{seat} computed {entry.nonfinite_in_row} non-finite gradients in a row; "
                    "lower --lr or --clip, then --resume from the last checkpoint"
                )
        self.ledger.sweep_orphans()
        self.drain()

    def _welcome(self, seat: Seat) -> None:
        seat.notices_read = True
        notices = worker.read_notices(self._log(seat.slot), seat.log_begin)
        self.notices |= dict.fromkeys(notices)
        if seat.joined and not seat.up:
            seat.up = True
            self._count()
            notices.append(f"{seat} has joined")
        for notice in notices:
            self.report(notice)

    def _kill_stale(self) -> None:
        """Kill workers without a heartbeat for too long; `poll` then reaps them."""
        steps_s = [
            (entry.read_ns + entry.compute_ns + entry.apply_ns) / entry.steps / 1e9
            for entry in map(self.entry, self.seats)
            if entry.steps
        ]
        limit_s = self.plan.config.heartbeat_timeout_s
        if steps_s:
            limit_s = max(limit_s, STALE_STEPS * statistics.median(steps_s))
        now_s = self._watched.look()
        for seat in self.seats:
            entry = self.entry(seat)
            if entry.heartbeat_ns != seat.beat_ns:
                seat.beat_ns, seat.beat_seen_s = entry.heartbeat_ns, now_s
            silent_s = now_s - seat.beat_seen_s
            allowed_s = max(limit_s, START_S) if entry.state == State.STARTING else limit_s
            is_late = seat.leaving_s is not None and now_s - seat.leaving_s > LEAVE_S
            if not (is_late or silent_s > allowed_s):
                continue
            if seat.slot in self.pool and self.pool[seat.slot].is_alive():
                self.pool[seat.slot].kill()
                if not is_late:
                    self.report(
                        f"{seat} gave no sign of life for {silent_s:.0f} s in phase "
                        f"{Phase(entry.phase).name.lower()}; killed"
                    )

    # -- the state of workers --------------------------------------------------------------------

    def entry(self, seat: Seat) -> Entry:
        """The worker table entry of a seat."""
        return self.arena.workers.entry(seat.slot)

    def ready(self) -> bool:
        """Whether every worker is up, and the link of a cluster has data for them."""
        return (self.link is None or self.link.is_ready) and all(
            self.entry(seat).state == State.RUNNING for seat in self.seats
        )

    def ends(self) -> int:
        """Number of ended workers, which may have left accepted jobs undone."""
        return self.restarts + self.removed

    def resting(self) -> bool:
        """Whether every worker is up and none is inside a step or an evaluation.

        A dead or starting worker does not rest: it may have left work half done that others wait
        for.
        """
        return self._twice(lambda: [self._rests(seat) for seat in self.seats])

    def holding_still(self) -> bool:
        """Whether no worker changes the state of a checkpoint while `pause` is set.

        All others may be waiting for a starting worker, but not in a step that they do together. A
        worker that evaluates or samples holds no ticket and writes nothing of a checkpoint. It
        claims next, and every `claim` checks `pause` before a change, except for its part in a
        joint step (`between_steps`).
        """

        def look() -> list[bool]:
            still = [self.entry(seat).phase in STILL for seat in self.seats]
            return [*still, self.strategy.between_steps(self.arena)]

        return self._twice(look)

    def has_side_job(self) -> bool:
        """Whether a worker evaluates or samples; this ends by itself."""
        side_jobs = (Phase.EVALUATE, Phase.SAMPLE)
        return any(self.entry(seat).phase in side_jobs for seat in self.seats)

    def _rests(self, seat: Seat) -> bool:
        entry = self.entry(seat)
        return entry.state == State.RUNNING and entry.phase == Phase.IDLE

    def _twice(self, look: Callable[[], list[bool]]) -> bool:
        """Whether all are true twice, with no step in between, and the link holds still."""

        def steps() -> list[tuple[int, int]]:
            return [(self.entry(seat).steps, self.entry(seat).state) for seat in self.seats]

        def all_true() -> bool:
            return all(look()) and (self.link is None or self.link.still())

        before = steps()
        if not all_true():
            return False
        time.sleep(0.02)
        return all_true() and before == steps()

    # -- life and death --------------------------------------------------------------------------

    def _log(self, slot: int) -> Path:
        return self.run_dir / "logs" / f"worker-{slot}.log"

    def _job(self, slot: int, halvings: int = 0) -> Job:
        return Job(
            plan=self.plan,
            handle=self.arena.handle(),
            slot=slot,
            run_dir=self.run_dir,
            changes=self.arena.counters.load("strategy"),
            halvings=halvings,
        )

    def _count(self) -> None:
        """Store the number of workers, on which step sizes and predictions depend."""
        n = sum(seat.up or not seat.joined for seat in self.seats)
        self.arena.counters.store("workers", n)

    def _spawn(self, seat: Seat) -> None:
        log = self._log(seat.slot)
        seat.log_begin, seat.notices_read = log.stat().st_size if log.exists() else 0, False
        job = self._job(seat.slot, seat.halvings)
        if self.plan.config.determinism == "record":
            begin = event_log.Begin(job.spec.backend, job.spec.threads, job.kernels)
            event_log.append(event_log.worker_path(self.run_dir, seat.slot), begin)
        self.pool[seat.slot] = WorkerProcess(
            worker.main,
            (job,),
            name=f"mlxhog-worker-{seat.slot}",
            threads=seat.spec.threads,
            arena=self.arena,
            slots=(seat.slot,),
        )

    def _reap(self, seat: Seat, timeout_s: float = 0.0) -> Death:
        """Free the tickets and locks of a dead worker; kill it first after `timeout_s`."""
        entry = self.entry(seat)
        if self.plan.config.determinism == "record":
            self.pool[seat.slot].end(timeout_s)
            died = entry.state not in (State.FINISHED, State.LEAVING)
            recorded.settle(self.arena, self.run_dir, seat.slot, died=died)
        death = self.pool.reap(seat.slot, timeout_s)
        report = self.ledger.reap(entry.incarnation)
        entry.torn += report.torn
        self.torn += report.torn
        # If all write an update together, the replacement finishes it.
        if self.strategy.between_steps(self.arena):
            Marks(self.arena, seat.slot).end_update()
        return death

    def _replace_or_remove(self, seat: Seat) -> None:
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

    def _replace(self, seat: Seat) -> None:
        state = self.entry(seat).state
        death = self._reap(seat)
        if state == State.FINISHED or self.arena.counters.load("command") == Command.EXIT:
            return
        log = self._log(seat.slot)
        with log.open("rb") if log.exists() else BytesIO() as output:
            last = last_lines(output)[-1]
        if state == State.STARTING and death.code in EXIT_ERRORS:
            raise EXIT_ERRORS[death.code](f"{seat} cannot start: {last}")
        if death.is_fault:
            raise WorkerFailed(
                f"{seat} met an error that a restart cannot cure: {last}; see {log}, and please "
                "report it"
            )
        now = monotonic_ns() / 1e9
        seat.deaths_s.append(now)
        # A worker that never starts is given up, however long each attempt takes.
        while state != State.STARTING and seat.deaths_s[0] < now - RESTART_WINDOW_S:
            seat.deaths_s.popleft()
        if seat.spec.backend in GPU_BACKENDS and death.code in WATCHDOG:
            lost = f"lost its GPU ({last})" if death.code > 0 else "was aborted (SIGABRT)"
            self._halve(seat, f"{seat} {lost}", last)
        if len(seat.deaths_s) > self.plan.config.restarts:
            raise WorkerFailed(
                f"{seat} died {len(seat.deaths_s)} times in {RESTART_WINDOW_S / 60:.0f} minutes "
                f"(last: {death}; {last}){limit_in_words()}; see {log}, or allow more with "
                "--restarts"
            )
        self.restarts += 1
        self._spawn(seat)
        self.report(f"{seat} died ({death}) and is being replaced")

    def _halve(self, seat: Seat, cause: str, last: str) -> None:
        """Halve the micro-batch of a worker that the GPU watchdog ended."""
        if seat.halvings == worker.MOST_HALVINGS:
            raise WorkerFailed(
                f"{cause} with ever smaller micro-batches, last line {last!r}; {worker.HINTS}"
            )
        seat.halvings += 1
        n = self._job(seat.slot, seat.halvings).micro_batch
        self.report(
            f"{cause}, as happens on macOS when GPU work keeps the display waiting; it starts "
            f"again with micro-batches of {n} sequence{'s' * (n > 1)}. If this happens again, "
            f"{worker.HINTS}"
        )

    # -- joining and leaving ---------------------------------------------------------------------

    def free_slots(self) -> list[int]:
        """Slots in which workers could join, unused ones first."""
        used = {seat.slot for seat in self.seats} | {self.link.slot if self.link else None}
        free = [entry for entry in self.arena.workers if entry.slot not in used]
        return [entry.slot for entry in sorted(free, key=lambda one: (one.generation, one.slot))]

    def join(self, slot: int, spec: WorkerSpec, kernels: str) -> None:
        """Start one more worker, in a free slot whose optimizer state is in place."""
        self.plan = self.plan.with_worker(slot, spec, kernels)
        seat = Seat(slot, spec, joined=True)
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

    def _remove(self, seat: Seat, why: str = "") -> None:
        if seat.slot in self.pool:
            self._reap(seat)
        self.seats.remove(seat)
        self.removed += 1
        self.arena.workers.release(seat.slot)
        self._count()
        self.report(why or f"{seat} has left after {self.entry(seat).steps} steps")
