"""Per-worker record rings in the arena: what a worker tells the supervisor, without a queue.

One writer (the worker) and one reader (the supervisor) per ring. The worker writes a record, then
publishes it by a release store of the head; the reader takes what lies between its own position and
the head. A reader that falls a whole ring behind loses the oldest records.

    ring bytes   0  u64 head, number of records ever written
               128  CAPACITY records of RECORD
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native

CAPACITY = 1024
RECORD = np.dtype(
    [
        ("kind", "<u4"),
        ("worker", "<u4"),
        ("version", "<u8"),
        ("t_ns", "<u8"),
        ("loss", "<f8"),  # mean nats per target
        ("tokens", "<u8"),
        ("staleness", "<u8"),
        ("n_bytes", "<u8"),  # text bytes the targets decode to
        ("nats", "<f8"),  # summed over the targets
        ("read_s", "<f4"),  # seconds of a step, by what they went into
        ("compute_s", "<f4"),
        ("apply_s", "<f4"),
        ("wait_s", "<f4"),
    ]
)
RING_BYTES = 128 + CAPACITY * RECORD.itemsize


class Kind(IntEnum):
    """What a record reports."""

    STEP = 0
    EVALUATION = 1
    SAMPLE = 2


class Ring:
    """One worker's ring, over `RING_BYTES` bytes of the arena."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap a ring; the reader's position starts at the current head."""
        self._data = data
        self._records = data[128:RING_BYTES].view(RECORD)
        self._read = self._head()

    def _head(self) -> int:
        return int(_native.load_u64(self._data, 0))

    def append(self, **fields: float) -> None:
        """Write one record and publish it; only the ring's worker may call this."""
        head = self._head()
        record = self._records[head % CAPACITY]
        for name in RECORD.names or ():
            record[name] = fields.get(name, 0)
        _native.store_u64(self._data, 0, head + 1)

    def drain(self) -> NDArray[np.void]:
        """Every record published since the last call, oldest first; for the supervisor only."""
        head = self._head()
        oldest = max(self._read, head - CAPACITY + 1)
        records = self._records[np.arange(oldest, head) % CAPACITY].copy()
        self._read = head
        return records
