"""A limit on the memory of the process that sets it, so that one run cannot end its neighbours."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.1
MARGIN = 1.25
MARGIN_BYTES = 256 << 20
_STATM = Path("/proc/self/statm")


def limit(n_bytes: int, over: Callable[[int], None]) -> None:
    """Call `over` once with the resident bytes as soon as they are more than `n_bytes`.

    On Linux the kernel refuses memory some way above that, for an allocation that is too large at
    once, and for code that keeps Python's lock while it takes memory. macOS has no such limit.
    """
    if sys.platform == "linux":
        backstop = int(n_bytes * MARGIN) + MARGIN_BYTES
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            backstop = min(backstop, hard)
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_DATA, (backstop, hard))

    def look() -> None:
        while (used := resident_bytes()) <= n_bytes:
            time.sleep(LOOK_S)
        over(used)

    threading.Thread(target=look, daemon=True, name="memory-watch").start()


def resident_bytes() -> int:
    """Resident memory of this process: what it is on Linux, the most it was on macOS."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
