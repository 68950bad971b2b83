"""How much memory an arena may take on this machine."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from mlxhog.machine import darwin

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
    known = [limit for limit in limits if limit is not None]
    if known:
        return min(known)
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
