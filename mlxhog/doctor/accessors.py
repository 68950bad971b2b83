"""The writers and readers of the litmus tests, and which of them this machine has.

    native              the kernels of `mlxhog.optim.updates`, with ready increments
    mlx:cpu, torch:cpu  as workers do: the framework makes increments, the same kernels add them
    metal:mlx, :mps     our Metal kernels on the GPU
    emulated:mlx, :mps  the same source on the CPU, as either framework would run it
    naive:...           `view += increments` in NumPy, torch or Metal, as no part of mlxhog does

A GPU worker that adds its own steps is `metal:...`; one whose steps the CPU adds is like `mlx:cpu`.
Those that need a framework are in `probes_mlx.py` and `probes_torch.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.doctor.bench import FLOATS, INDEX, ROWS, SHAPES, Bench
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import missing
from mlxhog.metal import engine as engines
from mlxhog.metal.kernels.adds import dense_axpy, racy_axpy, scatter_add_rows
from mlxhog.metal.kernels.packed16 import packed16_add
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows
from mlxhog.optim.updates import Float32

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
class Accessor:
    """A writer or a reader by name, and how a process creates it.

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
        """Create it, in the thread that will use it; imports what it needs."""
        module, _, function = self.factory.partition(":")
        create = getattr(importlib.import_module(module), function)
        return create(bench, slot, *self.arguments)


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
        """Return one pass over a kernel's elements."""
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


def native_writer(bench: Bench, slot: int) -> CPUWriter:
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
        """Return one pass; dense only, and no mode."""
        shared = self._bench.shared(kernel)
        increments = np.full(shared.shape, value, np.float32)

        def add() -> None:
            nonlocal shared
            shared += increments

        return add


def _all_added(failures: int) -> None:
    if failures:
        raise RuntimeError(f"{failures} words were given up after 64 tries")


# -- Metal kernels as a writer, on any engine ------------------------------------------------------

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
        """Return one pass; always atomic, whatever the mode."""
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


class NaiveMetalWriter:
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
        """Return one pass; dense only, and no mode."""
        engine = self._engine
        increments = engine.array(np.full(SHAPES[kernel], value, np.float32))
        launch = racy_axpy(self._flat, increments, scale=1.0, offset=self._offset)

        def add() -> None:
            engine.run(launch)

        return add


# -- readers ---------------------------------------------------------------------------------------


class Reader(Protocol):
    """Reads the dense parameter, from the one thread that made it."""

    def read(self) -> Float32:
        """Values as this reader's framework sees them now, (1024,) float32, private."""


class NativeReader:
    """A snapshot by native code, which every worker's snapshot begins with."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench

    def read(self) -> Float32:
        """Return the values as they are seen now."""
        return self._bench.values("dense")


# -- which of them this machine has ----------------------------------------------------------------

_HERE = "mlxhog.doctor."


def metal_engines(machine: Machine) -> list[str]:
    """Names of the Metal engines: those of an Apple GPU, else the emulated ones."""
    if not machine.apple_gpu:
        return ["emulated:mlx", "emulated:mps"]
    names = {"mlx": "mlx:gpu", "mps": "torch:mps"}
    return [name for name, backend in names.items() if missing(backend, machine) is None]


def all_writers(machine: Machine, usable_engines: list[str]) -> list[Accessor]:
    """Every writer that is present, the naive ones last.

    Args:
        machine: this one.
        usable_engines: those of `metal_engines` that could be started.
    """
    kinds = [Accessor("native", f"{_HERE}accessors:native_writer")]
    if missing("torch:cpu", machine) is None:
        kinds.append(Accessor("torch:cpu", f"{_HERE}probes_torch:cpu_writer"))
    if missing("mlx:cpu", machine) is None:
        kinds.append(Accessor("mlx:cpu", f"{_HERE}probes_mlx:cpu_writer"))
    kinds += [
        Accessor(
            name if name.startswith("emulated:") else f"metal:{name}",
            f"{_HERE}accessors:MetalWriter",
            (name,),
            emulated=name.startswith("emulated:"),
            gpu=True,
        )
        for name in usable_engines
    ]
    kinds.append(Accessor("naive:numpy", f"{_HERE}accessors:NaiveWriter", naive=True))
    if missing("torch:cpu", machine) is None:
        kinds.append(Accessor("naive:torch", f"{_HERE}probes_torch:NaiveWriter", naive=True))
    kinds += [
        replace(
            kind,
            name=f"naive:{kind.name}",
            factory=f"{_HERE}accessors:NaiveMetalWriter",
            naive=True,
        )
        for kind in kinds
        if kind.gpu
    ]
    return kinds


def all_readers(machine: Machine) -> list[tuple[str, Accessor]]:
    """Every ("snapshot" or "live", reader) that is present; a reader is named by its backend."""
    readers = [("snapshot", Accessor("native", f"{_HERE}accessors:NativeReader"))]
    for backend in ("mlx:cpu", "torch:cpu", "mlx:gpu", "torch:mps"):
        framework, device = backend.split(":")
        if missing(backend, machine) is None:
            module = f"{_HERE}probes_{framework}"
            readers.append(("snapshot", Accessor(backend, f"{module}:SnapshotReader", (device,))))
            if backend in ("torch:cpu", "mlx:gpu"):  # the two that can alias host memory
                readers.append(("live", Accessor(backend, f"{module}:LiveReader")))
    return readers
