"""PyTorch as a writer: as our workers use it, and as a program without mlxhog would."""

from __future__ import annotations

import numpy as np
import torch

from mlxhog.doctor.bench import Bench
from mlxhog.doctor.writers import CPUWriter, Increments, Pass


def cpu(bench: Bench, slot: int) -> CPUWriter:
    """Make a writer whose increments are computed by torch, anew in each pass."""
    torch.set_num_threads(1)

    def fresh(shape: tuple[int, ...], value: float, half: bool) -> Increments:
        dtype = torch.float16 if half else torch.float32

        def make() -> np.ndarray:
            made: np.ndarray = torch.full(shape, value, dtype=dtype).numpy()
            return made

        return make

    return CPUWriter(bench, slot, fresh)


class NaiveWriter:
    """`tensor.add_(increments)` on a tensor that aliases the shared bytes."""

    def __init__(self, bench: Bench, slot: int) -> None:
        torch.set_num_threads(1)
        self._bench = bench

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """See `Writer.adder`; dense only, and no mode."""
        shared = torch.from_numpy(self._bench.shared(kernel))
        increments = torch.full(shared.shape, value)

        def add() -> None:
            shared.add_(increments)

        return add
