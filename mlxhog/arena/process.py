"""The clock, processes and memory, as the operating system reports them.

A clock that all processes share, and when a process started: a pid alone does not name one, since
the system reuses it; a pid with its start time does. `metal/native/updates/process_life.cpp` asks
the system, for the stripe locks as for us. And how much memory an arena may take.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from mlxhog import _native
from mlxhog.machine import darwin

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


def process_is_gone(pid: int, start_time: int) -> bool:
    """Whether the process of this pid and start time has ended, be it a zombie yet.

    Args:
        pid: of the process.
        start_time: from `process_start_time`; 0 where it is not known.
    """
    return _native.process_is_gone(pid, start_time)


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")


def available_bytes() -> int:
    """Bytes of shared memory that can still be had; 0 if the system does not say.

    Linux: the least of the memory available, what the control group leaves, and the room in
    /dev/shm. macOS, where shared memory is ordinary memory: pages free or inactive. Elsewhere all
    physical memory.
    """
    if sys.platform == "darwin":
        return darwin.available_bytes()
    limits = [_meminfo(), _cgroup(), _shm()]
    byte_limits = [limit for limit in limits if limit is not None]
    if byte_limits:
        return min(byte_limits)
    return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def limit_in_words() -> str:
    """Say to how much memory this process is limited, as a clause; empty without a limit."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed == resource.RLIM_INFINITY:
        return ""
    return f"; a process may have {allowed:,} bytes of addresses here (ulimit -v)"


def _meminfo() -> int | None:
    """Memory that the kernel expects to be able to give without swapping."""
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    """What this container's memory limit leaves (control groups, version 2)."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not limit.exists() or not used.exists():
        return None
    text = limit.read_text().strip()
    return None if text == "max" else max(0, int(text) - int(used.read_text()))


def _shm() -> int | None:
    """Room in the file system that backs shared memory on Linux; 64 MB in many containers."""
    if not _SHM.is_dir():
        return None
    stat = os.statvfs(_SHM)
    return stat.f_bavail * stat.f_frsize
