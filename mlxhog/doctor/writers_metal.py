"""Our Metal kernels as a writer, on any engine."""

from __future__ import annotations

import numpy as np

from mlxhog.doctor.bench import FLOATS, INDEX, ROWS, SHAPES, Bench
from mlxhog.doctor.writers import Pass
from mlxhog.metal import engine as engines
from mlxhog.metal.kernels.adds import dense_axpy, racy_axpy, scatter_add_rows
from mlxhog.metal.kernels.packed16 import packed16_add

_FAILURES = 8  # words; MLX hands smaller arrays over in memory that cannot be written


class MetalWriter:
    """Adds in place to the arena that its engine imported without a copy.

    Args:
        bench: the arena.
        slot: not needed, since nothing is locked.
        engine: name of a Metal engine.
    """

    def __init__(self, bench: Bench, slot: int, engine: str) -> None:
        self._bench = bench
        self._engine = engines.create(engine)
        self._flat = self._engine.adopt(bench.flat)
        self._packed = self._engine.adopt(bench.packed)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """See `Writer.adder`; always atomic, whatever the mode."""
        engine = self._engine
        if kernel == "half":
            halves = np.full(FLOATS, value, np.float16).view(np.uint32)
            failures = engine.array(np.zeros(_FAILURES, np.uint32))
            launch = packed16_add(
                self._packed, engine.array(halves), failures, offset=0, instance="half"
            )
        else:
            increments = engine.array(np.full(SHAPES[kernel], value, np.float32))
            offset = self._bench.slot(kernel).offset
            if kernel == "dense":
                launch = dense_axpy(self._flat, increments, scale=1.0, offset=offset)
            else:
                index = engine.array(INDEX)
                launch = scatter_add_rows(
                    self._flat, index, increments, scale=1.0, offset=offset, height=ROWS
                )

        def add() -> None:
            engine.run(launch)

        return add


class NaiveWriter:
    """A Metal kernel that reads, adds and stores, as a program without atomics would.

    Args:
        bench: the arena.
        slot: not needed.
        engine: name of a Metal engine.
    """

    def __init__(self, bench: Bench, slot: int, engine: str) -> None:
        self._offset = bench.slot("dense").offset
        self._engine = engines.create(engine)
        self._flat = self._engine.adopt(bench.flat)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """See `Writer.adder`; dense only, and no mode."""
        engine = self._engine
        increments = engine.array(np.full(SHAPES[kernel], value, np.float32))
        launch = racy_axpy(self._flat, increments, scale=1.0, offset=self._offset)

        def add() -> None:
            engine.run(launch)

        return add
