"""The copies of its parameters that a run publishes for readers.

Two segments laid out like `params` alternate: while one is written, the other can be read. One
process publishes. Any number of readers map the arena read-only, and take no lock: a reader reads
again if the copy that it was reading was written meanwhile (a sequence lock), which needs a reader
slower than the time between two copies. The run publishes while readers are connected
(`requests.py`).

    live.1, live.2  float32  the copies; number k lies in `live.1` if k is odd
    live.words      uint8    of the run: number of the newest copy, 0 none; 1 after the last one.
                             Of each copy: its mark (`marks.py`); its oldest and newest update;
                             its time, monotonic ns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import marks
from mlxhog.arena.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import LINE, Table

WORDS = "live.words"
_TABLE = Table(run=(1, "number closed"), copy=(2, "mark oldest version time_ns"))


def segments(max_workers: int) -> dict[str, tuple[str, int]]:
    """The extra segments of an arena whose run publishes copies, as `arena.plan` takes them."""
    return {
        "live.1": ("float32", PARAMETER_COPY),
        "live.2": ("float32", PARAMETER_COPY),
        WORDS: ("uint8", _TABLE.n_bytes),
        marks.SEGMENT: ("uint8", marks.marks_bytes(max_workers)),
    }


@dataclass(frozen=True)
class Copy:
    """Number, time and updates of one copy.

    Attributes:
        number: number of the copy, from 1.
        oldest: number of updates that are completely in it.
        version: number of updates of which at least a part may be in it.
        time_ns: time of the copy, monotonic.
    """

    number: int
    oldest: int
    version: int
    time_ns: int


class Copies:
    """The copies in an arena; one process may publish, any process may read."""

    def __init__(self, arena: Arena) -> None:
        """Find the copies of an arena.

        Raises:
            ArenaError: the run publishes no copies.
        """
        self._data = arena.segment(WORDS)
        self._words = _TABLE.open(self._data)
        self._floats = (arena.segment("live.2"), arena.segment("live.1"))

    def number(self) -> int:
        """Number of the newest copy; 0 before the first."""
        return self._words["number"]

    def floats(self, number: int) -> NDArray[np.float32]:
        """The memory of the copy with this number."""
        return self._floats[number % 2]

    def mark(self, number: int) -> int | None:
        """A number that changes when the memory of this copy is written; None during the write."""
        return _native.nobody_writes(self._data, self._at(number), LINE, 1)

    def newest(self) -> Copy | None:
        """Number, time and updates of the newest copy; None before the first."""
        while (number := self.number()) != 0:
            before, row = self.mark(number), (number + 1) % 2
            copy = Copy(number, *(self._words[k, row] for k in ("oldest", "version", "time_ns")))
            if before is not None and self.mark(number) == before and self.number() == number:
                return copy
        return None

    def take(self, out: NDArray[np.float32]) -> Copy | None:
        """Copy the first `out.size` floats of the newest copy into `out`; None if there is no copy.

        Concurrency: never waits; it repeats the read if the copy was written meanwhile.
        """
        while (copy := self.newest()) is not None:
            before = self.mark(copy.number)
            _native.snapshot(out, self.floats(copy.number)[: out.size])
            if before is not None and self.mark(copy.number) == before:
                return copy
        return None

    def publish(self, fill: Callable[[NDArray[np.float32]], marks.Updates]) -> None:
        """Write the next copy, and make it the newest; only one process may call this.

        Args:
            fill: writes the parameters into its argument, and returns the updates in it.
        """
        words, number = self._words, self.number() + 1
        row = (number + 1) % 2
        _native.begin_writing(self._data, self._at(number))
        words["time_ns", row] = monotonic_ns()
        words["oldest", row], words["version", row] = fill(self.floats(number))
        _native.end_writing(self._data, self._at(number))
        words["number"] = number

    def close(self) -> None:
        """Mark the newest copy as the last."""
        self._words["closed"] = 1

    @property
    def closed(self) -> bool:
        """Whether the newest copy is the last."""
        return self._words["closed"] != 0

    def _at(self, number: int) -> int:
        """Byte of the mark of a copy."""
        return LINE * (1 + (number + 1) % 2)
