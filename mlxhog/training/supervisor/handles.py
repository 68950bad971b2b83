"""One worker of a run as its supervisor keeps it: its heartbeat, and its deaths."""

import signal
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from mlxhog.arena.process import Heartbeat, monotonic_ns
from mlxhog.arena.workers import Entry, WorkerPhase, WorkerState
from mlxhog.base.child_processes import Death
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.training.plan.job import HINTS, LOST_GPU_EXIT_CODE, MAX_HALVINGS, METAL_EXIT_CODE

RESTART_WINDOW_S = 600.0
EXIT_ERRORS = {2: ConfigError, 3: EnvironmentLacks, METAL_EXIT_CODE: EnvironmentLacks}
WATCHDOG = (-signal.SIGABRT, LOST_GPU_EXIT_CODE)
"""Exit codes of a GPU worker that macOS has ended."""

WITHOUT_METAL = "continue with --resume, --kernels eager and --gpu-write cpu"

FIRST_STEP_S = 300.0  # a first gradient has no heartbeat, and its time is not known yet


@dataclass
class WorkerHandle:
    """A worker slot, and the state of the process in it."""

    entry: Entry  # of the worker table
    spec: WorkerSpec
    deaths_s: deque[float] = field(default_factory=deque)
    failed_starts: int = 0  # in a row
    halvings: int = 0
    is_eager: bool = False  # its Metal kernels have failed
    joined: bool = False  # during the run
    up: bool = False  # the joined worker has started
    leaving_s: float | None = None  # start of its leaving, in watched time
    parked: bool = False  # it is to wait for its next job
    cancelled: bool = False  # ended within a step when the time was over; not replaced
    respawn_s: float | None = None  # when its replacement is to start, in watched time
    notices_read: bool = False  # its notices were reported
    was_silent: bool = False  # its process was killed for a missing heartbeat
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def slot(self) -> int:
        """Its worker slot."""
        return self.entry.slot

    def __str__(self) -> str:
        """Its name in messages."""
        return f"worker {self.slot} ({self.spec.backend})"

    @property
    def is_idle(self) -> bool:
        """Whether it is outside a step and an evaluation, and none is to come from it."""
        is_idle = self.entry.state == WorkerState.RUNNING and self.entry.phase == WorkerPhase.IDLE
        return self.cancelled or is_idle

    def begin(self) -> None:
        """Forget the process before the one that is being spawned."""
        self.parked = self.notices_read = self.cancelled = self.was_silent = False
        self.respawn_s = self.leaving_s = None

    def max_silent_s(self, timeout_s: float) -> float:
        """Return how long it may have no heartbeat; `timeout_s` is for a worker with steps."""
        starts = self.entry.state == WorkerState.STARTING and not self.parked
        return timeout_s if self.entry.steps and not starts else max(timeout_s, FIRST_STEP_S)

    def judge(
        self, death: Death, last: str, log: Path, config: TrainConfig, *, is_first: bool,
        was_up: bool,
    ) -> str | None:  # fmt: skip
        """Judge a death by the last line of its log, and count it.

        A GPU worker that macOS has ended gets half its micro-batch; the cause is returned. One
        whose Metal kernels failed gets eager operators, if the kernels are `auto`.

        Raises:
            ConfigError, EnvironmentLacks: a first worker cannot start; the message is its own.
            WorkerFailed: a restart cannot cure the error, or there were more than `restarts`.
        """
        if is_first and death.code in EXIT_ERRORS:
            raise EXIT_ERRORS[death.code](f"{self} cannot start: {last}")
        if death.is_fault:
            raise WorkerFailed(
                f"{self} met an error that a restart cannot cure: {last}; see {log}, and please "
                "report it"
            )
        cause = None
        if death.code == METAL_EXIT_CODE:
            if self.is_eager or config.kernels != "auto":
                raise WorkerFailed(f"{self}: {last}; see {log}, and {WITHOUT_METAL}")
            self.is_eager = True
        if self.spec.backend in GPU_BACKENDS and death.code in WATCHDOG:
            lost = f"lost its GPU ({last})" if death.code > 0 else "was aborted (SIGABRT)"
            cause = f"{self} {lost}"
            if self.halvings == MAX_HALVINGS:
                raise WorkerFailed(
                    f"{cause} with ever smaller micro-batches, last line {last!r}; {HINTS}"
                )
            self.halvings += 1
        way_out = death.way_out(last, otherwise="allow more with --restarts")
        if self.was_silent:
            way_out = "allow a longer silence with --heartbeat-timeout"
        way_out = f"see {log}, or {way_out}"
        self.count_death(config.restarts, f"{death}; {last}", way_out, was_up=was_up)
        return cause

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
