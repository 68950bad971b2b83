"""The copies of its parameters that a run publishes for readers.

Two segments laid out like `params` alternate: while one is written, the other can be read. One
process publishes. Any number of readers map the arena read-only, and take no lock: a reader reads
again if the copy that it was reading was written meanwhile (a sequence lock), which needs a reader
slower than the time between two copies. The run publishes while readers are connected
(`requests.py`).

    live.1, live.2      float32   the copies; number k lies in `live.1` if k is odd
    live.words          uint8, in lines of 128 bytes
        line 0          [0] number of the newest copy, 0 none; [1] 1 after the last copy
        line 1, 2       of each copy: [0] its mark (`marks.py`), [1] oldest, [2] version,
                        [3] mixed, [4] time of the copy, monotonic ns
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

LINE = 128
WORDS = "live.words"
_NUMBER, _CLOSED = 0, 8
_MARK, _OLDEST, _VERSION, _MIXED, _TIME = range(0, 40, 8)


def segments(n_params: int, max_workers: int) -> dict[str, tuple[str, int]]:
    """The extra segments of an arena whose run publishes copies, as `arena.plan` takes them."""
    return {
        "live.1": ("float32", PARAMETER_COPY),
        "live.2": ("float32", PARAMETER_COPY),
        WORDS: ("uint8", 3 * LINE),
        marks.SEGMENT: ("uint8", marks.marks_bytes(n_params, max_workers)),
    }


@dataclass(frozen=True)
class Copy:
    """Number, time and updates of one copy.

    Attributes:
        number: number of the copy, from 1.
        oldest: number of updates that are completely in it.
        version: number of updates of which at least a part may be in it.
        mixed: number of tensors that were written during the copy.
        time_ns: time of the copy, monotonic.
    """

    number: int
    oldest: int
    version: int
    mixed: int
    time_ns: int


class Copies:
    """The copies in an arena; one process may publish, any process may read."""

    def __init__(self, arena: Arena) -> None:
        """Find the copies of an arena.

        Raises:
            ArenaError: the run publishes no copies.
        """
        self._words = arena.segment(WORDS)
        self._floats = (arena.segment("live.2"), arena.segment("live.1"))

    def number(self) -> int:
        """Number of the newest copy; 0 before the first."""
        return _native.load_u64(self._words, _NUMBER)

    def floats(self, number: int) -> NDArray[np.float32]:
        """The memory of the copy with this number."""
        return self._floats[number % 2]

    def mark(self, number: int) -> int | None:
        """A number that changes when the memory of this copy is written; None during the write."""
        return _native.nobody_writes(self._words, self._line(number) + _MARK, LINE, 1)

    def newest(self) -> Copy | None:
        """Number, time and updates of the newest copy; None before the first."""
        while (number := self.number()) != 0:
            at, before = self._line(number), self.mark(number)
            fields = (self._load(at + word) for word in (_OLDEST, _VERSION, _MIXED, _TIME))
            copy = Copy(number, *fields)
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

    def publish(self, fill: Callable[[NDArray[np.float32]], tuple[int, int, int]]) -> None:
        """Write the next copy, and make it the newest; only one process may call this.

        Args:
            fill: writes the parameters into its argument, and returns `oldest`, `version` and
                `mixed` of the new `Copy`.
        """
        number = self.number() + 1
        at = self._line(number)
        _native.begin_writing(self._words, at + _MARK)
        time_ns = monotonic_ns()
        values = (*fill(self.floats(number)), time_ns)
        for word, value in zip((_OLDEST, _VERSION, _MIXED, _TIME), values, strict=True):
            _native.store_u64(self._words, at + word, value)
        _native.end_writing(self._words, at + _MARK)
        _native.store_u64(self._words, _NUMBER, number)

    def close(self) -> None:
        """Mark the newest copy as the last."""
        _native.store_u64(self._words, _CLOSED, 1)

    @property
    def closed(self) -> bool:
        """Whether the newest copy is the last."""
        return _native.load_u64(self._words, _CLOSED) != 0

    def _line(self, number: int) -> int:
        return LINE * (2 - number % 2)

    def _load(self, at: int) -> int:
        return _native.load_u64(self._words, at)
