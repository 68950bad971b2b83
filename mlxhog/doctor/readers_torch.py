"""PyTorch as a reader: of a snapshot, and on the CPU of the shared bytes themselves."""

from __future__ import annotations

import torch

from mlxhog.doctor.bench import FLOATS, Bench
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32


class SnapshotReader:
    """A tensor filled from the arena before each computation.

    Args:
        bench: the arena.
        slot: not needed.
        device: "cpu" or "mps".
    """

    def __init__(self, bench: Bench, slot: int, device: str) -> None:
        torch.set_num_threads(1)
        self._bench = bench
        self._device = torch.device(device)
        self._host = torch.zeros(FLOATS)
        self._inbox: Float32 = self._host.numpy()

    def read(self) -> Float32:
        """See `Reader.read`."""
        updates.snapshot(self._inbox, self._bench.shared("dense"))
        return _computed(self._host.to(self._device))


class LiveReader:
    """A tensor that aliases the shared bytes."""

    def __init__(self, bench: Bench, slot: int) -> None:
        torch.set_num_threads(1)
        self._live = torch.from_numpy(bench.shared("dense"))

    def read(self) -> Float32:
        """See `Reader.read`."""
        return _computed(self._live)


def _computed(tensor: torch.Tensor) -> Float32:
    """What a computation on the device sees: the product is a new tensor."""
    seen: Float32 = (tensor * 1.0).cpu().numpy()
    return seen
