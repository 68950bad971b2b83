"""The copies of its parameters that a run keeps for readers, and the readers that hold them.

Two segments laid out like `params` take turns; while one is written, the other can be read. One
process publishes. Any number of readers map the arena without the right to write, so what they say
stands in a page of its own, handed to them beside the arena.

    live.1, live.2      float32   the copies; number k lies in `live.1` if k is odd
    live.words          uint8, in lines of 128 bytes
        line 0          [0] number of the newest copy, 0 none; [1] 1 when no more will come
        line 1, 2       of each copy: [0] its mark (`marks.py`), [1] oldest, [2] version,
                        [3] mixed, [4] when it was taken, monotonic ns
    the readers' page
        line 0          [0] readers that ever came
        line 1 ..       a reader each: [0] pid, 0 free; [1] start time of its process; [2] number of
                        the copy it is reading, 0 none; [3] since when, monotonic ns

A reader names the copy that it is going to read, and looks again whether that is the newest; the
publisher says which is the newest, and looks who reads the other before it writes there. Between
its store and its load each has a full fence, so one of the two sees the other. Where a reader has
the copy whose turn it is, the publisher tries again later: neither waits for the other. The hold of
a process that has died does not count, nor does one of more than `HOLD_S`; whoever had that one
finds the copy's mark changed, and reads again. Source: Michael 2004, Hazard Pointers.
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
    """What an arena has more whose run can be read, as `arena.plan` takes it."""
    return {
        "live.1": ("float32", PARAMETER_COPY),
        "live.2": ("float32", PARAMETER_COPY),
        WORDS: ("uint8", 3 * LINE),
        marks.SEGMENT: ("uint8", marks.marks_bytes(n_params, max_workers)),
    }


@dataclass(frozen=True)
class Copy:
    """What is known of one copy.

    Attributes:
        number: counts copies, from 1.
        oldest: updates that are in it whole.
        version: updates that may be in it.
        mixed: tensors in it that are not as they were between two updates.
        time_ns: when it was taken, monotonic.
    """

    number: int
    oldest: int
    version: int
    mixed: int
    time_ns: int


class Readers:
    """The page in which readers say what they hold; every reader and the publisher map it."""

    def __init__(self, page: NDArray[np.uint8]) -> None:
        """Wrap a page."""
        self._page = page

    @classmethod
    def create(cls) -> tuple[Readers, int]:
        """A new page, and the descriptor that readers map it by, which the caller closes."""
        backing = segment.create(PAGE)
        os.close(backing.readonly_fd)
        return cls(np.frombuffer(backing.mapping, np.uint8)), backing.fd

    @classmethod
    def attach(cls, fd: int) -> Readers:
        """Map the page behind a descriptor, which is closed.

        Raises:
            ArenaError: it is no such page.
        """
        try:
            if os.fstat(fd).st_size != PAGE:
                raise ArenaError("the second descriptor of a run is not its readers' page")
            return cls(np.frombuffer(mmap.mmap(fd, PAGE), np.uint8))
        finally:
            os.close(fd)

    def came(self) -> int:
        """Readers that ever registered."""
        return _native.load_u64(self._page, 0)

    def present(self) -> int:
        """Readers whose process lives; entries of the dead are freed."""
        return sum(not self._is_gone(at) for at in self._entries())

    def hold(self, number: int) -> bool:
        """Whether a living reader is reading a copy, and has not for too long.

        To be asked when `number` is no longer the newest.
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
            ArenaError: all are taken.
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
            f"{MOST_READERS} readers have this run open, as many as can be; close one of them"
        )

    def _entries(self) -> list[int]:
        return [at for at in range(LINE, PAGE, LINE) if self._load(at, _PID)]

    def _is_gone(self, at: int) -> bool:
        """Whether the process of an entry is dead; then the entry is free again."""
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
        """Copy the newest copy into `out`, its first floats; None where there is none yet.

        Concurrency: never waits. It begins again where a new copy was published at that moment.
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
        """Give the entry back."""
        self._readers._store(self._at, _START, 0)
        self._readers._store(self._at, _PID, 0)


class Copies:
    """The copies of an arena that has them; one process may publish, any may look."""

    def __init__(self, arena: Arena) -> None:
        """Find them.

        Raises:
            ArenaError: the run keeps none.
        """
        self._words = arena.segment(WORDS)
        self._floats = (arena.segment("live.2"), arena.segment("live.1"))

    def number(self) -> int:
        """Number of the newest copy; 0 before the first."""
        return _native.load_u64(self._words, _NUMBER)

    def floats(self, number: int) -> NDArray[np.float32]:
        """The memory in which a copy of this number lies."""
        return self._floats[number % 2]

    def mark(self, number: int) -> int | None:
        """A number that changes when that memory is written; None while it is."""
        return _native.nobody_writes(self._words, self._line(number) + _MARK, LINE, 1)

    def newest(self) -> Copy | None:
        """What is known of the newest copy; None before the first."""
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
        """Write the next copy, and make it the newest; only by the one process that publishes.

        Args:
            readers: who may be reading.
            fill: writes the parameters into what it is given, and returns what `Copy` says of them:
                oldest, version, mixed.

        Returns:
            False where a reader still holds the memory whose turn it is: nothing was done.
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
        """Say that no more will come."""
        _native.store_u64(self._words, _CLOSED, 1)

    @property
    def closed(self) -> bool:
        """Whether no more will come."""
        return _native.load_u64(self._words, _CLOSED) != 0

    def _line(self, number: int) -> int:
        return LINE * (2 - number % 2)

    def _load(self, at: int) -> int:
        return _native.load_u64(self._words, at)
