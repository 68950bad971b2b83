"""One worker of a run as its supervisor keeps it: its signs of life, and its deaths."""

from collections import deque
from dataclasses import dataclass, field

from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry, WorkerState
from mlxhog.base.workers import WorkerSpec
from mlxhog.errors import WorkerFailed

RESTART_WINDOW_S = 600.0
FIRST_STEP_S = 300.0  # a first gradient gives no sign of life, and its time is not known yet


@dataclass
class WorkerHandle:
    """A worker slot, and the state of the process in it."""

    slot: int
    spec: WorkerSpec
    deaths_s: deque[float] = field(default_factory=deque)
    failed_starts: int = 0  # in a row
    halvings: int = 0
    joined: bool = False  # during the run
    up: bool = False  # the joined worker has started
    leaving_s: float | None = None  # start of its leaving, in watched time
    parked: bool = False  # it is to wait for its next job
    cancelled: bool = False  # ended within a step when the time was over; not replaced
    respawn_s: float | None = None  # when its replacement is to start, in watched time
    notices_read: bool = False  # its notices were reported
    was_silent: bool = False  # its process was killed for its silence
    beat_ns: int = 0  # last observed heartbeat
    beat_seen_s: float = 0.0  # time of that observation, in watched time

    def __str__(self) -> str:
        """Its name in messages."""
        return f"worker {self.slot} ({self.spec.backend})"

    def begin(self) -> None:
        """Forget the process before the one that is being spawned."""
        self.parked = self.notices_read = self.cancelled = self.was_silent = False
        self.respawn_s = self.leaving_s = None

    def silent_s(self, entry: Entry, now_s: float) -> float:
        """Return the watched seconds since its last sign of life."""
        if entry.heartbeat_ns != self.beat_ns:
            self.beat_ns, self.beat_seen_s = entry.heartbeat_ns, now_s
        return now_s - self.beat_seen_s

    def may_be_silent_s(self, entry: Entry, timeout_s: float) -> float:
        """Return how long it may give no sign of life; `timeout_s` is for a worker with steps."""
        starts = entry.state == WorkerState.STARTING and not self.parked
        return timeout_s if entry.steps and not starts else max(timeout_s, FIRST_STEP_S)

    def count_death(self, restarts: int, why: str, way_out: str, *, was_up: bool) -> None:
        """Count a death in the last ten minutes, or a start that failed.

        Those of a worker that never starts all count, however long each attempt takes.

        Raises:
            WorkerFailed: there were more than `restarts`.
        """
        self.deaths_s.append(now_s := monotonic_ns() / 1e9)
        while was_up and self.deaths_s[0] < now_s - RESTART_WINDOW_S:
            self.deaths_s.popleft()
        self.failed_starts = 0 if was_up else self.failed_starts + 1
        if (deaths := len(self.deaths_s)) > restarts:
            times = f"{deaths} time{'s' * (deaths > 1)} in {RESTART_WINDOW_S / 60:.0f} minutes"
            raise WorkerFailed(f"{self} died {times} (last: {why}); {way_out}")
