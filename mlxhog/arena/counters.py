"""Counters that every process of a run shares, each a 64-bit word on a cache line of its own.

The arena gives them their places; what they mean belongs to those who use them
(`mlxhog/arena/control.py` and the strategies).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.errors import ArenaError

LINE = 128  # Apple's cache line; two of x86's
NAMES = (
    "version", "tokens", "steps",
    "command", "pause", "start_ns", "limit_ns",
    "first_ticket", "end_ticket", "tickets_before",
    "eval_asked", "eval_taken", "eval_next", "eval_first", "side_until_ns",
    "sample_asked", "sample_taken",
)  # fmt: skip
_OFFSETS = {name: LINE * i for i, name in enumerate(NAMES)}
_MODULUS = 1 << 64


class Counters:
    """Atomic access to the counters by name.

    Concurrency: any process, any time. A load sees everything written before the store or add whose
    value it reads (acquire and release).
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the arena's segment `counters`; read-only memory allows `load` only."""
        self._data = data

    def load(self, name: str) -> int:
        """The counter's value, 0 <= value < 2^64."""
        return _native.load_u64(self._data, _offset(name))

    def store(self, name: str, value: int) -> None:
        """Set the counter."""
        _native.store_u64(self._writable(), _offset(name), value % _MODULUS)

    def add(self, name: str, value: int = 1) -> int:
        """Add to the counter, modulo 2^64, and return its old value; `value` may be negative."""
        return _native.add_u64(self._writable(), _offset(name), value % _MODULUS)

    def compare_exchange(self, name: str, expected: int, desired: int) -> bool:
        """Set the counter if it is `expected`; returns whether it was."""
        return _native.cas_u64(self._writable(), _offset(name), expected, desired % _MODULUS)

    def _writable(self) -> NDArray[np.uint8]:
        if not self._data.flags.writeable:
            raise ArenaError("this arena is attached read-only; only workers write counters")
        return self._data


def _offset(name: str) -> int:
    try:
        return _OFFSETS[name]
    except KeyError:
        raise ArenaError(f"no counter {name!r}; there are {', '.join(NAMES)}") from None
