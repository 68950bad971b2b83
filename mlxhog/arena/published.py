"""The copies of its parameters that a run publishes for readers, and the readers that use them.

Two segments laid out like `params` alternate: while one is written, the other can be read. One
process publishes. Any number of readers map the arena read-only. They write which copy they read
into a separate page, the readers' page, whose descriptor they get beside the arena's.

    live.1, live.2      float32   the copies; number k lies in `live.1` if k is odd
    live.words          uint8, in lines of 128 bytes
        line 0          [0] number of the newest copy, 0 none; [1] 1 after the last copy
        line 1, 2       of each copy: [0] its mark (`marks.py`), [1] oldest, [2] version,
                        [3] mixed, [4] time of the copy, monotonic ns
    the readers' page
        line 0          [0] number of readers that ever registered
        line 1 ..       one per reader: [0] pid, 0 free; [1] start time of its process; [2] number
                        of the copy it is reading, 0 none; [3] start of this read, monotonic ns

A reader stores the number of the copy that it is going to read, then checks that this is still the
newest. The publisher stores the number of the newest copy, then checks for readers of the other
one before it writes there. Each has a full fence between its store and its load, so at least one of
the two sees the other. If a reader holds the copy that is to be overwritten, the publisher tries
again later: neither waits for the other. The hold of a dead process does not count, nor a hold
longer than `HOLD_S`; the reader of such a hold finds the copy's mark changed, and reads again.
Source: Michael 2004, Hazard Pointers.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import marks, segment
from mlxhog.arena.arena import Arena
from mlxhog.arena.layout import PAGE, PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns, process_is_gone, process_start_time
from mlxhog.errors import ArenaError

LINE = 128
WORDS = "live.words"
MOST_READERS = PAGE // LINE - 1
HOLD_S = 10.0
_NUMBER, _CLOSED = 0, 8
_MARK, _OLDEST, _VERSION, _MIXED, _TIME = range(0, 40, 8)
_PID, _START, _READS, _SINCE = range(0, 32, 8)


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


class Readers:
    """The page in which readers write which copy they read; readers and publisher map it."""

    def __init__(self, page: NDArray[np.uint8]) -> None:
        """Wrap a page."""
        self._page = page

    @classmethod
    def create(cls) -> tuple[Readers, int]:
        """A new page, and its descriptor for readers; the caller closes the descriptor."""
        backing = segment.create(PAGE)
        os.close(backing.readonly_fd)
        return cls(np.frombuffer(backing.mapping, np.uint8)), backing.fd

    @classmethod
    def attach(cls, fd: int) -> Readers:
        """Map the page of a descriptor, and close the descriptor.

        Raises:
            ArenaError: the descriptor is not that of a readers' page.
        """
        try:
            if os.fstat(fd).st_size != PAGE:
                raise ArenaError("the second descriptor of a run is not its readers' page")
            return cls(np.frombuffer(mmap.mmap(fd, PAGE), np.uint8))
        finally:
            os.close(fd)

    def came(self) -> int:
        """Number of readers that ever registered."""
        return _native.load_u64(self._page, 0)

    def present(self) -> int:
        """Number of readers whose process lives; entries of dead processes are freed."""
        return sum(not self._is_gone(at) for at in self._entries())

    def hold(self, number: int) -> bool:
        """Whether a living reader has been reading copy `number`, for at most `HOLD_S`.

        Call it when `number` is no longer the newest copy.
        """
        _native.full_fence()
        overdue_ns = monotonic_ns() - int(HOLD_S * 1e9)
        return any(
            self._load(at, _READS) == number
            and self._load(at, _SINCE) > overdue_ns
            and not self._is_gone(at)
            for at in self._entries()
        )

    def register(self) -> Reader:
        """Take an entry for this process.

        Raises:
            ArenaError: all entries are in use.
        """
        pid = os.getpid()
        for _ in range(2):
            for at in range(LINE, PAGE, LINE):
                if _native.cas_u64(self._page, at + _PID, 0, pid):
                    self._store(at, _READS, 0)
                    self._store(at, _START, process_start_time(pid))
                    _native.add_u64(self._page, 0, 1)
                    return Reader(self, at)
            self.present()
        raise ArenaError(
            f"{MOST_READERS} readers have this run open, which is the maximum; close one of them"
        )

    def _entries(self) -> list[int]:
        return [at for at in range(LINE, PAGE, LINE) if self._load(at, _PID)]

    def _is_gone(self, at: int) -> bool:
        """Whether the process of an entry is dead; if so, free the entry."""
        pid, start = self._load(at, _PID), self._load(at, _START)
        if pid and not process_is_gone(pid, start):
            return False
        self._store(at, _START, 0)
        _native.cas_u64(self._page, at + _PID, pid, 0)
        return True

    def _load(self, at: int, word: int) -> int:
        return _native.load_u64(self._page, at + word)

    def _store(self, at: int, word: int, value: int) -> None:
        _native.store_u64(self._page, at + word, value)


class Reader:
    """One reader's entry in the page. Belongs to one thread."""

    def __init__(self, readers: Readers, at: int) -> None:
        """Use `Readers.register`."""
        self._readers, self._at = readers, at

    def take(self, copies: Copies, out: NDArray[np.float32]) -> Copy | None:
        """Copy the first `out.size` floats of the newest copy into `out`; None if there is no copy.

        Concurrency: never waits; it repeats the read if a new copy was published meanwhile.
        """
        n = out.size
        while True:
            copy = copies.newest()
            if copy is None:
                return None
            self._readers._store(self._at, _SINCE, monotonic_ns())
            self._readers._store(self._at, _READS, copy.number)
            _native.full_fence()
            before = copies.mark(copy.number)
            if copies.number() == copy.number and before is not None:
                _native.snapshot(out, copies.floats(copy.number)[:n])
                whole = copies.mark(copy.number) == before
                self._readers._store(self._at, _READS, 0)
                if whole:
                    return copy
            self._readers._store(self._at, _READS, 0)

    def close(self) -> None:
        """Free the entry."""
        self._readers._store(self._at, _START, 0)
        self._readers._store(self._at, _PID, 0)


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

    def publish(
        self, readers: Readers | None, fill: Callable[[NDArray[np.float32]], tuple[int, int, int]]
    ) -> bool:
        """Write the next copy, and make it the newest; only one process may call this.

        Args:
            readers: the readers' page, or None without readers.
            fill: writes the parameters into its argument, and returns `oldest`, `version` and
                `mixed` of the new `Copy`.

        Returns:
            False if a reader still reads the memory of the next copy; then nothing was done.
        """
        number = self.number() + 1
        if readers is not None and number > 2 and readers.hold(number - 2):
            return False
        at = self._line(number)
        _native.begin_writing(self._words, at + _MARK)
        time_ns = monotonic_ns()
        values = (*fill(self.floats(number)), time_ns)
        for word, value in zip((_OLDEST, _VERSION, _MIXED, _TIME), values, strict=True):
            _native.store_u64(self._words, at + word, value)
        _native.end_writing(self._words, at + _MARK)
        _native.store_u64(self._words, _NUMBER, number)
        return True

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
