"""The arena of the litmus tests, and the writers and readers that this machine has for it.

    dense   parameter of 1024 floats, one stripe lock
    rows    parameter of 16 x 64, a lock per row; an add names rows 0 .. 15 and every second again

    counter        here
    steps          writers that stand at the start line
    version        number of the last value that a writer published
    start_ns       time of its publication
    eval_taken     the last of them that the reader has seen

An arena has one write mode; here the mode changes between rounds, while no writer runs.

    accessor            adds or reads
    native              the kernels of `mlxhog.optim.updates`, with ready increments
    mlx:cpu, torch:cpu  as workers do: the framework makes increments, the same kernels add them
    metal:mlx, :mps     our Metal kernels on the GPU
    emulated:mlx, :mps  the same source on the CPU, as either framework would run it
    naive:...           `view += increments` in NumPy, torch or Metal; no part of mlxhog does this

A GPU worker that adds its own steps is `metal:...`; one whose steps the CPU adds is like `mlx:cpu`.
`probes_mlx.py` and `probes_torch.py` have the accessors that need a framework.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog import arena
from mlxhog.arena import Arena, Slot
from mlxhog.arena.process import WatchedTime
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import missing
from mlxhog.metal import engine as engines
from mlxhog.metal.kernels.adds import dense_axpy, racy_axpy, scatter_add_rows
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows
from mlxhog.optim.updates import Float32, Int32

# -- the arena -------------------------------------------------------------------------------------

KERNELS: Final = ("dense", "rows")
FLOATS: Final = 1024
ROWS: Final = 16
WIDTH: Final = FLOATS // ROWS
INDEX: Final[Int32] = np.concatenate([np.arange(ROWS), np.arange(0, ROWS, 2)]).astype(np.int32)
COUNTS: Final[Mapping[str, Float32]] = {
    "dense": np.ones(FLOATS, np.float32),
    "rows": np.repeat(np.bincount(INDEX).astype(np.float32), WIDTH),
}
"""Number of adds to each element in one pass."""
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "dense": (FLOATS,),
    "rows": (len(INDEX), WIDTH),
}
"""Shape of the increments of one pass."""
LIMITS: Final[Mapping[str, int]] = {"dense": 1 << 23, "rows": 1 << 22}
"""Passes of each of two writers that every element can count exactly."""
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class _Parameter:
    shape: tuple[int, ...]
    kind: str
    init: str = "zeros"


def create_arena(slots: int) -> Arena:
    """Create an arena for litmus tests with `slots` writer slots."""
    layout = arena.plan(
        {"dense": _Parameter((FLOATS,), "dense"), "rows": _Parameter((ROWS, WIDTH), "rows")},
        max_workers=slots,
        n_tickets=1,
    )
    return Arena.create(layout)


class Bench:
    """The same bytes, mapped in any process.

    Attributes:
        arena: mapped here.
        flat: its whole parameter segment, (n,) float32.
    """

    def __init__(self, mapped: Arena) -> None:
        self.arena = mapped
        self.flat: Float32 = mapped.params

    def slot(self, kernel: str) -> Slot:
        """Return the slot of the parameter "dense" or "rows"."""
        return self.arena.layout.slots[kernel]

    def shared(self, kernel: str) -> Float32:
        """Return the shared floats that a kernel adds to."""
        slot = self.slot(kernel)
        return self.flat[slot.offset : slot.offset + slot.size]

    def values(self, kernel: str) -> Float32:
        """Copy the current values, (1024,) float32; writers may run meanwhile."""
        shared = self.shared(kernel)
        copy = np.empty_like(shared)
        updates.snapshot(copy, shared)
        return copy

    def fill(self, kernel: str, value: float = 0.0) -> None:
        """Set every element, while no writer runs."""
        self.shared(kernel)[:] = np.float32(value)

    def start_line(self) -> None:
        """Reset the start line for the next writers; no process may be waiting."""
        self.arena.counters.store("steps", 0)

    def line_up(self, writers: int) -> None:
        """Wait at the start line for `writers` processes in all.

        Raises:
            TimeoutError: the others did not arrive.
        """
        counters = self.arena.counters
        counters.add("steps")
        self.wait_for("steps", writers, "the other writer did not reach the start line")

    def wait_for(self, counter: str, value: int, otherwise: str) -> None:
        """Wait until a counter has reached a value.

        Raises:
            TimeoutError: with the text `otherwise`.
        """
        watched = WatchedTime()
        while self.arena.counters.load(counter) < value:
            if watched.look() > _PATIENCE_S:
                raise TimeoutError(otherwise)
            time.sleep(0)


# -- writers ---------------------------------------------------------------------------------------

Pass = Callable[[], None]
Increments = Callable[[], NDArray[Any]]


class Writer(Protocol):
    """Adds to the arena, in the thread that created it."""

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """Return one pass, which adds `value` to each element `COUNTS[kernel]` times.

        Args:
            kernel: one of `KERNELS`.
            mode: "lossless", "racy" or "cas" for the kernels of `mlxhog.optim.updates`.
            value: exact in the kernel's type.
        """


@dataclass(frozen=True)
class Accessor:
    """A writer or a reader by name, and how a process creates it.

    Attributes:
        name: as in the table.
        factory: `module:function`, called with (bench, slot, *arguments).
        arguments: of `factory`.
        emulated: whether it is Metal source that runs on a CPU.
        naive: whether it is of the kind `naive:...`, see the table.
        gpu: whether it is Metal, real or emulated: only atomic adds may run beside it.
    """

    name: str
    factory: str
    arguments: tuple[str, ...] = ()
    emulated: bool = False
    naive: bool = False
    gpu: bool = False

    def make(self, bench: Bench, slot: int) -> Any:  # a Writer, or a Reader
        """Create it in the thread that uses it; imports its framework."""
        module, _, function = self.factory.partition(":")
        create = getattr(importlib.import_module(module), function)
        return create(bench, slot, *self.arguments)


class CPUWriter:
    """Adds given increments by the native kernels.

    Args:
        bench: the arena.
        slot: this writer's, for its locks.
        increments: (shape, value) -> a function that returns the increments of one pass, a
            C-contiguous float32 array of this shape.
    """

    def __init__(
        self,
        bench: Bench,
        slot: int,
        increments: Callable[[tuple[int, ...], float], Increments],
    ) -> None:
        self._bench, self._slot, self._increments = bench, slot, increments
        self._locks = bench.arena.locks(slot)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """Return one pass over a kernel's elements."""
        flat, make = self._bench.flat, self._increments(SHAPES[kernel], value)
        place, how = self._bench.slot(kernel), updates.WRITE_MODES[mode]

        def add() -> None:
            values = make()
            delta = values if kernel == "dense" else Rows(INDEX, values)
            updates.add(flat, place, delta, locks=self._locks, mode=how, seed=self._slot)

        return add


def native_writer(bench: Bench, slot: int) -> CPUWriter:
    """Create the writer whose increments are ready before the start."""

    def ready(shape: tuple[int, ...], value: float) -> Increments:
        array = np.full(shape, value, np.float32)
        return lambda: array

    return CPUWriter(bench, slot, ready)


class NaiveWriter:
    """NumPy's `+=` on the shared view, as in a program without mlxhog."""

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


# -- Metal kernels as a writer, on any engine ------------------------------------------------------


class MetalWriter:
    """Adds in place to the arena that its engine imported without a copy.

    Args:
        bench: the arena.
        slot: unused, since there are no locks.
        engine: name of a Metal engine.
    """

    def __init__(self, bench: Bench, slot: int, engine: str) -> None:
        self._bench = bench
        self._engine = engines.create(engine)
        self._flat = self._engine.adopt(bench.flat)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """Return one pass, which is atomic in every mode."""
        engine = self._engine
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
    """A Metal kernel that reads, adds and stores without atomics.

    Args:
        bench: the arena.
        slot: unused.
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


class LitmusReader(Protocol):
    """Reads the dense parameter, in the thread that created it."""

    def read(self) -> Float32:
        """Return a private copy of the values that its framework sees now, (1024,) float32."""


class NativeReader:
    """A snapshot by native code, as at the beginning of every worker's snapshot."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return self._bench.values("dense")


# -- writers and readers of this machine -----------------------------------------------------------

_HERE = "mlxhog.doctor."


def metal_engines(machine: Machine) -> list[str]:
    """Return the names of the Metal engines: those of an Apple GPU, else the emulated ones."""
    if not machine.apple_gpu:
        return ["emulated:mlx", "emulated:mps"]
    names = {"mlx": "mlx:gpu", "mps": "torch:mps"}
    return [name for name, backend in names.items() if missing(backend, machine) is None]


def all_writers(machine: Machine, usable_engines: list[str]) -> list[Accessor]:
    """Return every writer of this machine, the naive ones last.

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
    """Return every ("snapshot" or "live", reader) of this machine, named by its backend."""
    readers = [("snapshot", Accessor("native", f"{_HERE}accessors:NativeReader"))]
    for backend in ("mlx:cpu", "torch:cpu", "mlx:gpu", "torch:mps"):
        framework, device = backend.split(":")
        if missing(backend, machine) is None:
            module = f"{_HERE}probes_{framework}"
            readers.append(("snapshot", Accessor(backend, f"{module}:SnapshotReader", (device,))))
            if backend in ("torch:cpu", "mlx:gpu"):  # the two that can alias host memory
                readers.append(("live", Accessor(backend, f"{module}:LiveReader")))
    return readers
