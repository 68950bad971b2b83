"""64-bit words that processes share, by the names that one table declares."""

import struct

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native

LINE = 128
"""Bytes of a cache line of Apple's; two of x86's."""

_MODULUS = 1 << 64

Key = str | tuple[str, int]
"""Name of a word, with the number of its row in the group if that has several."""


class Table:
    """Words of a segment in groups of rows, such as one row for each worker.

    Each row begins on a line of its own, so that writers of different rows do not disturb each
    other.

    >>> table = Table(run=(1, "turn first"), worker=(2, "clock"))
    >>> words = table.open(np.zeros(table.n_bytes, np.uint8))
    >>> words["clock", 1] = 7           # of the second worker
    >>> words["clock", 1], words["turn"]
    (7, 0)
    """

    def __init__(self, **groups: tuple[int, str]) -> None:
        self.places: dict[str, tuple[int, int]] = {}  # first byte, bytes to the next row
        self.n_bytes = 0
        for rows, text in groups.values():
            names = text.split()
            row_bytes = LINE * -(-8 * len(names) // LINE)
            for k, name in enumerate(names):
                self.places[name] = (self.n_bytes + 8 * k, row_bytes)
            self.n_bytes += rows * row_bytes

    def open(self, data: NDArray[np.uint8]) -> "Words":
        """The words in a segment of `n_bytes` bytes."""
        return Words(self, data)


class Words:
    """The words of one segment.

    Concurrency: any number of processes; loads acquire and stores release.
    """

    def __init__(self, table: Table, data: NDArray[np.uint8]) -> None:
        self._places, self._data = table.places, data

    def _at(self, key: Key) -> int:
        name, row = (key, 0) if isinstance(key, str) else key
        first, step = self._places[name]
        return first + row * step

    def load(self, key: Key) -> int:
        """The word's value, 0 <= value < 2^64."""
        return _native.load_u64(self._data, self._at(key))

    def store(self, key: Key, value: int) -> None:
        """Set the word."""
        _native.store_u64(self._data, self._at(key), value % _MODULUS)

    __getitem__, __setitem__ = load, store

    def add(self, key: Key, value: int = 1) -> int:
        """Add to the word, modulo 2^64, and return its old value; `value` may be negative."""
        return _native.add_u64(self._data, self._at(key), value % _MODULUS)

    def compare_exchange(self, key: Key, expected: int, desired: int) -> bool:
        """Set the word if it is `expected`; returns whether it was."""
        return _native.cas_u64(self._data, self._at(key), expected, desired % _MODULUS)

    def real(self, key: Key) -> float:
        """The word's bits as a float64."""
        (value,) = struct.unpack("<d", struct.pack("<Q", self[key]))
        return float(value)

    def set_real(self, key: Key, value: float) -> None:
        """Set the word to the bits of a float64."""
        (self[key],) = struct.unpack("<Q", struct.pack("<d", value))
