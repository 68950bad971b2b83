"""PyTorch as a writer and as readers of the litmus arena; imported in a child."""

from __future__ import annotations

import torch

from mlxhog.arena import Arena
from mlxhog.doctor.litmus import FLOATS, Adder, Increments, cpu_adder, shared
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32


class SnapshotReader:
    """A tensor filled from the arena before each computation.

    Args:
        mapped: the arena.
        slot: unused.
        device: "cpu" or "mps".
    """

    def __init__(self, mapped: Arena, slot: int, device: str) -> None:
        torch.set_num_threads(1)
        self._shared = shared(mapped, "dense")
        self._device = torch.device(device)
        self._host = torch.zeros(FLOATS)
        self._inbox: Float32 = self._host.numpy()

    def read(self) -> Float32:
        """Return the values that it sees now."""
        updates.snapshot(self._inbox, self._shared)
        return _computed(self._host.to(self._device))


class LiveReader:
    """A tensor that aliases the shared bytes."""

    def __init__(self, mapped: Arena, slot: int) -> None:
        torch.set_num_threads(1)
        self._live = torch.from_numpy(shared(mapped, "dense"))

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return _computed(self._live)


def _computed(tensor: torch.Tensor) -> Float32:
    """Return the values that a computation on the device sees: the product is a new tensor."""
    values: Float32 = (tensor * 1.0).cpu().numpy()
    return values


def cpu_writer(mapped: Arena, slot: int) -> Adder:
    """Create a writer whose increments torch computes, anew in each pass."""
    torch.set_num_threads(1)

    def fresh(shape: tuple[int, ...], value: float) -> Increments:
        return lambda: torch.full(shape, value).numpy()

    return cpu_adder(mapped, slot, fresh)
