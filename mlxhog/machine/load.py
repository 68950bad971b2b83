"""How busy other programs keep this machine: whether times that are measured mean anything.

Linux counts the seconds for which all processors worked, and those of every process. What is left
of the first without this process and its descendants is the work of others. Elsewhere the load
average from before the measurement has to do.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_PART = 0.25
"""Of all processors: where others use more of them, times are theirs as much as ours."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Load:
    """What others used of this machine's processors.

    Attributes:
        others: processors, on average.
        processors: of the machine.
        average: the load average of the last minute, as `uptime` shows it.
    """

    others: float
    processors: int
    average: float

    @property
    def busy(self) -> bool:
        """Whether times cannot be trusted."""
        return self.others > BUSY_PART * self.processors

    def __str__(self) -> str:
        """Say that something cannot be told, and why.

        >>> str(Load(others=1.5, processors=2, average=7.93))
        'cannot be told: busy machine (load average 7.9 on 2 processors)'
        """
        return (
            f"cannot be told: busy machine (load average {self.average:.1f} on {self.processors} "
            f"processor{'s' * (self.processors > 1)})"
        )


class LoadWatch:
    """Watches what others use from its beginning on."""

    def __init__(self) -> None:
        """Begin."""
        self._average, self._began_s = os.getloadavg()[0], time.monotonic()
        self._worked_s, self._own_s = _worked_s(), _own_s()

    def look(self) -> Load:
        """What others have used since."""
        processors, average = os.cpu_count() or 1, os.getloadavg()[0]
        worked_s = _worked_s()
        if worked_s is None or self._worked_s is None:
            return Load(self._average, processors, average)
        spent_s = max(time.monotonic() - self._began_s, 1e-9)
        ticks_s = (1 + processors) / os.sysconf("SC_CLK_TCK")  # each counter is off by one at most
        others_s = worked_s - self._worked_s - (_own_s() - self._own_s) - ticks_s
        return Load(max(0.0, others_s) / spent_s, processors, max(average, self._average))


def _worked_s() -> float | None:
    """Seconds for which all processors worked, or a hypervisor took them; None if unknown."""
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields)
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Seconds of this process, its descendants, and those that it has waited for."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + gone.ru_utime + gone.ru_stime + _descendants_s()


def _descendants_s() -> float:
    """Seconds of the processes that descend from this one, with those they have waited for."""
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
