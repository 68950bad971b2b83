"""Load of other programs on this machine: whether timings can be trusted.

The system counts the busy seconds of all processors, and those of every process. The difference
between the first and those of this process and its descendants is the work of other programs.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

BUSY_SHARE = 0.25  # of all processors; above it timings cannot be trusted


@dataclass(frozen=True)
class Load:
    """Processors of this machine that other programs used."""

    others: float  # processors that other programs used, on average
    processors: int  # of the machine
    average: float  # the load average of the last minute, as `uptime` shows it

    @property
    def busy(self) -> bool:
        """Whether timings cannot be trusted."""
        return self.others > BUSY_SHARE * self.processors

    def __str__(self) -> str:
        return (
            f"inconclusive: busy machine (load average {self.average:.1f} on {self.processors} "
            f"processor{'s' * (self.processors > 1)})"
        )


class LoadWatch:
    """Measures the load of other programs from its creation on."""

    def __init__(self) -> None:
        self._average, self._began_s = os.getloadavg()[0], time.monotonic()
        self._busy_s, self._own_s = _busy_s(), _own_s()

    def look(self) -> Load:
        """Return the load since the creation of this object."""
        processors, average = os.cpu_count() or 1, os.getloadavg()[0]
        spent_s = max(time.monotonic() - self._began_s, 1e-9)
        ticks_s = (1 + processors) / os.sysconf("SC_CLK_TCK")  # each counter is off by one at most
        others_s = _busy_s() - self._busy_s - (_own_s() - self._own_s) - ticks_s
        return Load(max(0.0, others_s) / spent_s, processors, max(average, self._average))


def _busy_s() -> float:
    """Busy seconds of all processors, with those taken by a hypervisor."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")  # macOS has the first three
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))


def _own_s() -> float:
    """Processor seconds of this process and its descendants; on macOS without their dead ones."""
    own, gone = psutil.Process(), os.times()
    spent_s = gone.children_user + gone.children_system
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            spent_s += times.user + times.system
            if process != own:
                spent_s += times.children_user + times.children_system
    return float(spent_s)
