"""The clock and processes, as the operating system reports them.

The clock is the same in all processes. A pid alone does not identify a process, since the system
reuses it; a pid with its start time does. `metal/native/updates/process_life.h` asks the system for
both, here and in the stripe locks.
"""

import time

from mlxhog import _native

monotonic_ns = time.monotonic_ns  # since boot, equal in every process of one machine
process_start_time = _native.process_start_time  # 0 if there is no such process
process_is_gone = _native.process_is_gone  # a zombie has ended


class WatchedTime:
    """Seconds for which this process has watched others.

    A pause of the whole group (Ctrl-Z, a sleeping laptop) must not count as silence of the others,
    so the time between two calls of `look` counts as at most `MAX_SECONDS`.
    """

    MAX_SECONDS = 1.0

    def __init__(self) -> None:
        self._seconds, self._looked_ns = 0.0, monotonic_ns()

    def look(self) -> float:
        """The seconds so far; call it more often than every `MAX_SECONDS`."""
        now = monotonic_ns()
        self._seconds += min((now - self._looked_ns) / 1e9, self.MAX_SECONDS)
        self._looked_ns = now
        return self._seconds
