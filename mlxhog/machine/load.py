"""How busy other programs keep this machine, which says whether measured times can be trusted.

Linux counts the busy seconds of all processors, and of every process. The difference between the
first and those of this process and its descendants is the work of other programs. On other systems
the load average before the measurement is used.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_PART = 0.25
"""Share of all processors; if other programs use more, measured times cannot be trusted."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Load:
    """How many of this machine's processors other programs used.

    Attributes:
        others: processors that other programs used, on average.
        processors: processors of the machine.
        average: the load average of the last minute, as `uptime` shows it.
    """

    others: float
    processors: int
    average: float

    @property
    def busy(self) -> bool:
        """Whether measured times cannot be trusted."""
        return self.others > BUSY_PART * self.processors

    def __str__(self) -> str:
        """Say that a result cannot be told, and the reason.

        >>> str(Load(others=1.5, processors=2, average=7.93))
        'cannot be told: busy machine (load average 7.9 on 2 processors)'
        """
        return (
            f"cannot be told: busy machine (load average {self.average:.1f} on {self.processors} "
            f"processor{'s' * (self.processors > 1)})"
        )


class LoadWatch:
    """Measures the processors that other programs use, from its creation on."""

    def __init__(self) -> None:
        """Begin."""
        self._average, self._began_s = os.getloadavg()[0], time.monotonic()
        self._busy_s, self._own_s = _busy_s(), _own_s()

    def look(self) -> Load:
        """The load since the creation of this object."""
        processors, average = os.cpu_count() or 1, os.getloadavg()[0]
        busy_s = _busy_s()
        if busy_s is None or self._busy_s is None:
            return Load(self._average, processors, average)
        spent_s = max(time.monotonic() - self._began_s, 1e-9)
        ticks_s = (1 + processors) / os.sysconf("SC_CLK_TCK")  # each counter is off by one at most
        others_s = busy_s - self._busy_s - (_own_s() - self._own_s) - ticks_s
        return Load(max(0.0, others_s) / spent_s, processors, max(average, self._average))


def _busy_s() -> float | None:
    """Busy seconds of all processors, with those taken by a hypervisor; None if unknown."""
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields)
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Processor seconds of this process, its living descendants, and its reaped children."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + gone.ru_utime + gone.ru_stime + _descendants_s()


def _descendants_s() -> float:
    """Processor seconds of this process's living descendants, with their reaped children."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(folder.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))

    def descends(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return sum(ticks[pid] for pid in ticks if descends(pid)) / os.sysconf("SC_CLK_TCK")
