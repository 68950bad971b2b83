"""What tells one process from another: a clock all processes share, and when a process started.

A pid alone does not name a process, since the system reuses it; a pid with its start time does.
`metal/updates/process_life.cpp` asks the system, for the stripe locks as for us.
"""

from __future__ import annotations

import time

from mlxhog import _native

monotonic_ns = time.monotonic_ns  # since boot, equal in every process of one machine


def process_start_time(pid: int) -> int:
    """When process `pid` started, in a unit of the system's own; 0 if there is none.

    Linux: clock ticks since boot (/proc/PID/stat, field 22). macOS: microseconds since 1970
    (libproc). A zombie still has its start time on Linux.
    """
    return _native.process_start_time(pid) if pid > 0 else 0
