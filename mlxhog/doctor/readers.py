"""Who reads the arena while others write: a protocol, and the reader that needs no framework."""

from __future__ import annotations

from typing import Protocol

from mlxhog.doctor.bench import Bench
from mlxhog.optim.updates import Float32


class Reader(Protocol):
    """Reads the dense parameter, from the one thread that made it."""

    def read(self) -> Float32:
        """Values as this reader's framework sees them now, (1024,) float32, private."""


class NativeReader:
    """A snapshot by native code, which every worker's snapshot begins with."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench

    def read(self) -> Float32:
        """See `Reader.read`."""
        return self._bench.values("dense")
