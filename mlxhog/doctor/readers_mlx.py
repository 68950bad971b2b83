"""MLX as a reader: of a snapshot, as workers read by default, and of the shared bytes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxhog.doctor.bench import FLOATS, Bench
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32


class SnapshotReader:
    """A flat MLX array whose memory is filled from the arena before each evaluation.

    Args:
        bench: the arena.
        slot: not needed.
        device: "cpu" or "gpu".
    """

    def __init__(self, bench: Bench, slot: int, device: str) -> None:
        self._bench = bench
        self._device = mx.Device(mx.gpu if device == "gpu" else mx.cpu)
        self._flat = mx.zeros(FLOATS)
        mx.eval(self._flat)
        self._inbox: Float32 = np.array(self._flat, copy=False)

    def read(self) -> Float32:
        """See `Reader.read`."""
        updates.snapshot(self._inbox, self._bench.shared("dense"))
        return _evaluated(self._flat, self._device)


class LiveReader:
    """The arena imported without a copy; needs Metal."""

    def __init__(self, bench: Bench, slot: int) -> None:
        slot_of = bench.slot("dense")
        flat = mx.asarray(bench.flat, copy=False)
        self._live = flat[slot_of.offset : slot_of.offset + slot_of.size]

    def read(self) -> Float32:
        """See `Reader.read`."""
        return _evaluated(self._live, mx.Device(mx.gpu))


def _evaluated(array: mx.array, device: mx.Device) -> Float32:
    """What a computation on the device sees: the product is a new array."""
    seen = mx.multiply(array, 1.0, stream=device)
    mx.eval(seen)
    return np.array(seen, copy=False)
