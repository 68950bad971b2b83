"""The arena of the litmus tests: what writers add to, where they line up, how adds are counted.

    dense   parameter of 1024 floats, one stripe lock
    rows    parameter of 16 x 64, a lock per row; an add names rows 0 .. 15 and every second again
    half    segment of 1024 halves, two in a 32-bit word

    counter        here
    steps          writers that stand at the start line
    version        number of the last value that `reads.py` published
    start_ns       when it was published
    eval_taken     the last of them that the reader has seen

An arena has one write mode; here modes change between rounds, while nobody writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from mlxhog import arena
from mlxhog.arena import Arena, Slot
from mlxhog.arena.process import WatchedTime
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32, Int32, UInt32

KERNELS: Final = ("dense", "rows", "half")
FLOATS: Final = 1024
ROWS: Final = 16
WIDTH: Final = FLOATS // ROWS
INDEX: Final[Int32] = np.concatenate([np.arange(ROWS), np.arange(0, ROWS, 2)]).astype(np.int32)
COUNTS: Final[Mapping[str, Float32]] = {
    "dense": np.ones(FLOATS, np.float32),
    "rows": np.repeat(np.bincount(INDEX).astype(np.float32), WIDTH),
    "half": np.ones(FLOATS, np.float32),
}
"""How often one pass adds to each element."""
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "dense": (FLOATS,),
    "rows": (len(INDEX), WIDTH),
    "half": (FLOATS,),
}
"""What one pass adds: increments of this shape."""
LIMITS: Final[Mapping[str, int]] = {"dense": 1 << 23, "rows": 1 << 22, "half": 1 << 10}
"""Passes of each of two writers after which every element still counts exactly."""
_PACKED_WORDS = 4096  # a whole page of 16 KiB, so that a GPU can import it
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class _Parameter:
    shape: tuple[int, ...]
    kind: str
    init: str = "zeros"


def create(slots: int) -> Arena:
    """Create an arena for litmus tests with that many writer slots."""
    layout = arena.plan(
        {"dense": _Parameter((FLOATS,), "dense"), "rows": _Parameter((ROWS, WIDTH), "rows")},
        max_workers=slots,
        n_tickets=1,
        extra={"packed": ("uint32", _PACKED_WORDS)},
    )
    return Arena.create(layout)


class Bench:
    """The same bytes, seen from any process.

    Attributes:
        arena: mapped here.
        flat: its whole parameter segment, (n,) float32.
        packed: the segment of halves, (n,) uint32.
    """

    def __init__(self, mapped: Arena) -> None:
        self.arena = mapped
        self.flat: Float32 = mapped.params
        self.packed: UInt32 = mapped.segment("packed")

    def slot(self, kernel: str) -> Slot:
        """Where the parameter "dense" or "rows" lies."""
        return self.arena.layout.slots[kernel]

    def shared(self, kernel: str) -> Float32:
        """The shared bytes that a kernel adds to, as float32 (of halves: two in each)."""
        if kernel == "half":
            return self.packed[: FLOATS // 2].view(np.float32)
        slot = self.slot(kernel)
        return self.flat[slot.offset : slot.offset + slot.size]

    def values(self, kernel: str) -> Float32:
        """Copy the values as they are now, (1024,) float32; others may be writing."""
        shared = self.shared(kernel)
        copy = np.empty_like(shared)
        updates.snapshot(copy, shared)
        return copy.view(np.float16).astype(np.float32) if kernel == "half" else copy

    def fill(self, kernel: str, value: float = 0.0) -> None:
        """Set every element, while nobody writes."""
        self.shared(kernel)[:] = np.float32(value)

    def start_line(self) -> None:
        """Let the next writers line up; nobody may be waiting."""
        self.arena.counters.store("steps", 0)

    def line_up(self, writers: int) -> None:
        """Wait until `writers` of them are here.

        Raises:
            TimeoutError: the others did not come.
        """
        counters = self.arena.counters
        counters.add("steps")
        self.wait_for("steps", writers, "the other writer did not come to the start line")

    def wait_for(self, counter: str, value: int, otherwise: str) -> None:
        """Wait until a counter has reached a value.

        Raises:
            TimeoutError: saying `otherwise`.
        """
        watched = WatchedTime()
        while self.arena.counters.load(counter) < value:
            if watched.look() > _PATIENCE_S:
                raise TimeoutError(otherwise)
            time.sleep(0)
