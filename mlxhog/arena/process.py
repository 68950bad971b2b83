"""What tells one process from another: a clock all processes share, and when a process started.

A pid alone does not name a process, since the system reuses it; a pid with its start time does.
`metal/native/updates/process_life.cpp` asks the system, for the stripe locks as for us.
"""

from __future__ import annotations

import time

from mlxhog import _native

monotonic_ns = time.monotonic_ns  # since boot, equal in every process of one machine


class WatchedTime:
    """Seconds in which this process was there to watch others.

    A pause of the whole group (Ctrl-Z, a sleeping laptop, a stopped virtual machine) stops the
    watcher like the watched and is nobody's silence: of the time between two looks no more counts
    than `LONGEST_S`.
    """

    LONGEST_S = 1.0

    def __init__(self) -> None:
        """Begin at 0."""
        self._seconds, self._looked_ns = 0.0, monotonic_ns()

    def look(self) -> float:
        """The seconds so far; to be called again and again."""
        now = monotonic_ns()
        self._seconds += min((now - self._looked_ns) / 1e9, self.LONGEST_S)
        self._looked_ns = now
        return self._seconds


def process_start_time(pid: int) -> int:
    """When process `pid` started, in a unit of the system's own; 0 if there is none.

    Linux: clock ticks since boot (/proc/PID/stat, field 22). macOS: microseconds since 1970
    (libproc). A zombie still has its start time on Linux.
    """
    return _native.process_start_time(pid) if pid > 0 else 0
