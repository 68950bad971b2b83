"""Who adds to the arena: a protocol, and the writers that need no framework.

    native              the kernels of `mlxhog.optim.updates`, with ready increments
    mlx:cpu, torch:cpu  as workers do: the framework makes increments, the same kernels add them
    metal:mlx, :mps     our Metal kernels on the GPU
    emulated:mlx, :mps  the same source on the CPU, as either framework would run it
    naive:...           `view += increments` in NumPy, torch or Metal, as no part of mlxhog does

A GPU worker that adds its own steps is `metal:...`; one whose steps the CPU adds is like `mlx:cpu`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.doctor.bench import INDEX, SHAPES, Bench
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows

Pass = Callable[[], None]
Increments = Callable[[], NDArray[Any]]


class Writer(Protocol):
    """Adds to the arena, from the one thread that made it."""

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """Return one pass: `value` is added to each element of `bench.COUNTS[kernel]` so often.

        Args:
            kernel: one of `bench.KERNELS`.
            mode: "lossless", "racy" or "cas" for the kernels of `mlxhog.optim.updates`.
            value: exact in the kernel's type.
        """


@dataclass(frozen=True)
class Kind:
    """A kind of writer or reader, and how a process makes one.

    Attributes:
        name: as in the table.
        factory: `module:function`, called with (bench, slot, *arguments).
        arguments: see there.
        emulated: Metal source that runs on a CPU.
        naive: what mlxhog never does.
        gpu: Metal, real or emulated: only atomic adds may stand beside it.
    """

    name: str
    factory: str
    arguments: tuple[str, ...] = ()
    emulated: bool = False
    naive: bool = False
    gpu: bool = False

    def make(self, bench: Bench, slot: int) -> Any:  # a Writer, or a Reader
        """Make one, in the thread that will use it; imports what it needs."""
        module, _, function = self.factory.partition(":")
        made = getattr(importlib.import_module(module), function)
        return made(bench, slot, *self.arguments)


class CPUWriter:
    """Increments from anywhere, added by the native kernels.

    Args:
        bench: the arena.
        slot: this writer's, for its locks.
        increments: (shape, value, half) -> what gives one pass its increments, as a C-contiguous
            array of that shape and type.
    """

    def __init__(
        self,
        bench: Bench,
        slot: int,
        increments: Callable[[tuple[int, ...], float, bool], Increments],
    ) -> None:
        self._bench, self._slot, self._increments = bench, slot, increments
        self._locks = bench.arena.locks(slot)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """See `Writer.adder`."""
        flat, packed = self._bench.flat, self._bench.packed
        make = self._increments(SHAPES[kernel], value, kernel == "half")
        if kernel == "half":
            return lambda: _all_added(
                updates.add_packed16(packed, 0, make().view(np.uint32), bfloat=False)
            )
        place, how = self._bench.slot(kernel), updates.WRITE_MODES[mode]

        def add() -> None:
            values = make()
            delta = values if kernel == "dense" else Rows(INDEX, values)
            updates.add(flat, place, delta, locks=self._locks, mode=how, seed=self._slot)

        return add


def native(bench: Bench, slot: int) -> CPUWriter:
    """Make the writer whose increments are ready before the start."""

    def ready(shape: tuple[int, ...], value: float, half: bool) -> Increments:
        array = np.full(shape, value, np.float16 if half else np.float32)
        return lambda: array

    return CPUWriter(bench, slot, ready)


class NaiveWriter:
    """What a program without mlxhog would do: NumPy's `+=` on the shared view."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """See `Writer.adder`; dense only, and no mode."""
        shared = self._bench.shared(kernel)
        increments = np.full(shared.shape, value, np.float32)

        def add() -> None:
            nonlocal shared
            shared += increments

        return add


def _all_added(failures: int) -> None:
    if failures:
        raise RuntimeError(f"{failures} words were given up after 64 tries")
