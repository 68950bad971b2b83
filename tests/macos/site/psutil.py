"""psutil as it is on macOS: seconds of all processors and of a process, as the kernel counts them.

FAKE_FOREIGN_CPUS processors are busy with other programs; this process and the children that it has
waited for are the only others. Source: psutil 7.2, `scputimes` and `pcputimes` of `_psosx.py`.
"""

import os
import time
from collections import namedtuple

scputimes = namedtuple("scputimes", "user nice system idle")
pcputimes = namedtuple("pcputimes", "user system children_user children_system")


class Error(Exception):
    """An error of psutil."""


def cpu_times():
    """Seconds of all processors."""
    foreign = float(os.environ.get("FAKE_FOREIGN_CPUS", "0"))
    return scputimes(sum(os.times()[:4]) + foreign * time.monotonic(), 0.0, 0.0, 0.0)


class Process:
    """This process."""

    def cpu_times(self):
        """Seconds of this process; macOS does not say those of its children."""
        return pcputimes(*os.times()[:2], 0.0, 0.0)

    def children(self, recursive=False):
        """No living ones."""
        return []
