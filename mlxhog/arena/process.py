"""What tells one process from another: a clock all processes share, and when a process started.

A pid alone does not name a process, since the system reuses it; a pid with its start time does.
`metal/updates/process_life.cpp` computes the same numbers for the stripe locks.
"""

from __future__ import annotations

import ctypes
import sys
import time

monotonic_ns = time.monotonic_ns  # since boot, equal in every process of one machine

_PROC_PIDTBSDINFO = 3
_BSDINFO_BYTES = 136  # struct proc_bsdinfo; its last 16 bytes are the start: seconds, microseconds


def process_start_time(pid: int) -> int:
    """When process `pid` started, in a unit of the system's own; 0 if there is none.

    Linux: clock ticks since boot (/proc/PID/stat, field 22). macOS: microseconds since 1970
    (libproc). A zombie still has its start time.
    """
    if pid <= 0:
        return 0
    return _start_on_macos(pid) if sys.platform == "darwin" else _start_on_linux(pid)


def _start_on_linux(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # Field 2, the program's name, may hold spaces and parentheses; field 3 follows the last one.
    return int(stat.rpartition(b")")[2].split()[19])


def _start_on_macos(pid: int) -> int:
    info = ctypes.create_string_buffer(_BSDINFO_BYTES)
    libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
    flavor, argument = ctypes.c_int(_PROC_PIDTBSDINFO), ctypes.c_uint64(0)
    size = ctypes.c_int(_BSDINFO_BYTES)
    if libproc.proc_pidinfo(ctypes.c_int(pid), flavor, argument, info, size) != _BSDINFO_BYTES:
        return 0
    seconds = int.from_bytes(info.raw[-16:-8], sys.byteorder)
    return seconds * 1_000_000 + int.from_bytes(info.raw[-8:], sys.byteorder)
