"""The clock of a run: how long it has trained, and whether a step still fits its time budget.

Worker, monitor and supervisor read this one object; its start and its end are counters of the
arena, so all processes agree on the seconds.
"""

import math

from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import Words

GRACE_S = 3.0  # how long a step may run on after the deadline, at least
FIRST_STEP_S = 20.0  # the same, if no step is finished


class Clock:
    """The training time of one call of `train`, and its limit.

    Concurrency: any number of threads and processes may read it; the supervisor starts and stops
    it.
    """

    def __init__(self, counters: Words, limit_s: float | None) -> None:
        """Attach to an arena's counters; `limit_s` is the time budget, None for no limit."""
        self._counters, self.limit_s = counters, limit_s

    def start(self) -> int:
        """Start it; returns the moment in monotonic nanoseconds."""
        self._counters.store("start_ns", now_ns := monotonic_ns())
        return now_ns

    def stop(self) -> None:
        """Stop it, unless it has stopped or has not started."""
        if self.has_started and not self._counters.load("end_ns"):
            self._counters.store("end_ns", monotonic_ns())

    @property
    def has_started(self) -> bool:
        """Whether training has begun."""
        return self._counters.load("start_ns") > 0

    def seconds(self) -> float:
        """Seconds of training in this call so far; 0 before it begins."""
        if not (start_ns := self._counters.load("start_ns")):
            return 0.0
        return ((self._counters.load("end_ns") or monotonic_ns()) - start_ns) / 1e9

    def left_s(self) -> float:
        """Seconds until the deadline, at least 0; infinite without a limit."""
        return math.inf if self.limit_s is None else max(0.0, self.limit_s - self.seconds())

    def fits(self, step_s: float) -> bool:
        """Whether a step of `step_s` seconds that begins now ends before the deadline."""
        return self.limit_s is None or self.seconds() + step_s < self.limit_s

    def grace_s(self, step_s: float) -> float:
        """How long a step of `step_s` seconds on average may run on after the deadline."""
        return max(GRACE_S, step_s) if self._counters.load("steps") else FIRST_STEP_S
