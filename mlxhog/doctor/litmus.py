"""Two writers at once, and a reader beside a writer: lost adds, torn values and speed.

Both writers wait at a start line, then add 1.0 to every element, pass after pass, until the time is
over or float32 could no longer count exactly; meanwhile this process reads. Afterwards every
element must equal the number of its adds. A value is torn if it is not a whole number, is too
large, or (in modes that lose nothing) falls. Lossless and cas promise to lose nothing; racy
writers may lose adds, but no value tears.

A reader in another process must see whole values, in order and soon:

    flipping    the writer alternates between two values without a common byte, by adding their
                difference; any third value is torn
    counting    the writer adds 1.0 and publishes the number of its passes; the reader must see
                whole numbers that never fall, and each published pass after a short time

A snapshot may hold elements of different ages; each of them must be whole.

    writer or reader    adds or reads
    native              the kernels of `mlxhog.optim.updates`, with ready increments
    mlx:cpu, torch:cpu  as workers do: the framework makes increments, the same kernels add them
    metal:mlx, :mps     our Metal kernels on an Apple GPU

The arena has a parameter `dense` of 1024 floats with one stripe lock, and `rows` of 16 x 64 with a
lock per row, whose adds name rows 0 .. 15 and every second again. Its counters: `steps` are the
writers at the start line, `version` the number of the last published pass. An arena has one write
mode; here the mode changes between rounds, while no writer runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from multiprocessing import connection
from typing import Any, Final, Protocol

import numpy as np

from mlxhog import arena
from mlxhog.arena import Arena
from mlxhog.arena.child import START_S, Child, Failed, Lane, Late
from mlxhog.arena.process import WatchedTime
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.workers import missing
from mlxhog.metal import engine as engines
from mlxhog.metal.kernels.adds import dense_axpy, scatter_add_rows
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows
from mlxhog.optim.updates import Float32, Int32

FLOATS: Final = 1024
ROWS: Final = 16
INDEX: Final[Int32] = np.concatenate([np.arange(ROWS), np.arange(0, ROWS, 2)]).astype(np.int32)
COUNTS: Final[Mapping[str, Float32]] = {
    "dense": np.ones(FLOATS, np.float32),
    "rows": np.repeat(np.bincount(INDEX).astype(np.float32), FLOATS // ROWS),
}
"""Number of adds to each element in one pass."""
SHAPES: Final = {"dense": (FLOATS,), "rows": (len(INDEX), FLOATS // ROWS)}
"""Shape of the increments of one pass."""
KERNELS: Final = tuple(COUNTS)
LIMITS: Final = {"dense": 1 << 23, "rows": 1 << 22}
"""Passes of each of two writers that every element can count exactly."""
WHERE: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "threads": ((0, 0), (0, 1)),
    "processes": ((0, 0), (1, 0)),
}
"""Child and lane of each writer."""
SLOTS: Final = ((1, 2), (3,))
"""Worker slots of the two children, a lane each."""
PROMISED: Final = ("lossless", "cas")
PATIENCE_S: Final = 5.0  # until a reader sees a write
_ARRIVAL_S: Final = 20.0
_LOOK_S = 0.001
_GRACE_S = 30.0  # for a writer that compiles its kernel, or waits for a core


# -- the arena, writers and readers ----------------------------------------------------------------


@dataclass(frozen=True)
class _Parameter:
    shape: tuple[int, ...]
    kind: str
    init: str = "zeros"


def create_arena(slots: int) -> Arena:
    """Create an arena for litmus tests with `slots` writer slots."""
    parameters = {
        "dense": _Parameter((FLOATS,), "dense"),
        "rows": _Parameter((ROWS, FLOATS // ROWS), "rows"),
    }
    return Arena.create(arena.plan(parameters, max_workers=slots, n_tickets=1))


def shared(mapped: Arena, kernel: str) -> Float32:
    """Return the shared floats that a kernel adds to, (1024,)."""
    slot = mapped.layout.slots[kernel]
    return mapped.params[slot.offset : slot.offset + slot.size]


def values_of(mapped: Arena, kernel: str) -> Float32:
    """Copy the current values, (1024,) float32; writers may run meanwhile."""
    copy = np.empty(FLOATS, np.float32)
    updates.snapshot(copy, shared(mapped, kernel))
    return copy


def line_up(mapped: Arena, writers: int) -> None:
    """Wait at the start line for `writers` processes in all.

    Raises:
        TimeoutError: the others did not arrive.
    """
    mapped.counters.add("steps")
    watched = WatchedTime()
    while mapped.counters.load("steps") < writers:
        if watched.look() > _ARRIVAL_S:
            raise TimeoutError("the other process did not reach the start line")
        time.sleep(0)


Pass = Callable[[], None]
Increments = Callable[[], Float32]
Adder = Callable[[str, str, float], Pass]
"""(kernel, mode, value) -> one pass, which adds `value` to each element `COUNTS[kernel]` times."""


class LitmusReader(Protocol):
    """Reads the dense parameter, in the thread that created it."""

    def read(self) -> Float32:
        """Return a private copy of the values that its framework sees now, (1024,) float32."""


@dataclass(frozen=True)
class Accessor:
    """A writer or a reader by name, and how a process creates it.

    Attributes:
        name: as in the table.
        factory: `module:function`, called with (arena, slot, *arguments); an `Adder` of a writer.
        arguments: of `factory`.
    """

    name: str
    factory: str
    arguments: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether it is Metal: only atomic adds may run beside it."""
        return self.name.startswith("metal:")

    def make(self, mapped: Arena, slot: int) -> Any:
        """Create it in the thread that uses it; imports its framework."""
        module, _, function = self.factory.partition(":")
        return getattr(importlib.import_module(module), function)(mapped, slot, *self.arguments)


def cpu_adder(
    mapped: Arena, slot: int, increments: Callable[[tuple[int, ...], float], Increments]
) -> Adder:
    """Return an adder by the native kernels.

    Args:
        mapped: the arena.
        slot: this writer's, for its locks.
        increments: (shape, value) -> a function that returns the increments of one pass.
    """
    locks = mapped.locks(slot)

    def adder(kernel: str, mode: str, value: float) -> Pass:
        make, how = increments(SHAPES[kernel], value), updates.WRITE_MODES[mode]
        place = mapped.layout.slots[kernel]

        def add() -> None:
            delta = make() if kernel == "dense" else Rows(INDEX, make())
            updates.add(mapped.params, place, delta, locks=locks, mode=how, seed=slot)

        return add

    return adder


def native(mapped: Arena, slot: int) -> Adder:
    """Create the writer whose increments are ready before the start."""

    def ready(shape: tuple[int, ...], value: float) -> Increments:
        array = np.full(shape, value, np.float32)
        return lambda: array

    return cpu_adder(mapped, slot, ready)


def metal(mapped: Arena, slot: int, name: str) -> Adder:
    """Create the writer that adds in place to the arena that a Metal engine imported."""
    engine = engines.create(name)
    flat = engine.adopt(mapped.params)

    def adder(kernel: str, mode: str, value: float) -> Pass:
        increments = engine.array(np.full(SHAPES[kernel], value, np.float32))
        offset = mapped.layout.slots[kernel].offset
        if kernel == "dense":
            launch = dense_axpy(flat, increments, scale=1.0, offset=offset)
        else:
            index = engine.array(INDEX)
            launch = scatter_add_rows(
                flat, index, increments, scale=1.0, offset=offset, height=ROWS
            )

        def add() -> None:
            engine.run(launch)

        return add

    return adder


class NativeReader:
    """A snapshot by native code, as at the beginning of every worker's snapshot."""

    def __init__(self, mapped: Arena, slot: int) -> None:
        self._arena = mapped

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return values_of(self._arena, "dense")


NATIVE: Final = Accessor("native", f"{__name__}:native")


def all_writers(machine: Machine, usable_engines: Sequence[str]) -> list[Accessor]:
    """Return every writer of this machine, native code first.

    Args:
        machine: this one.
        usable_engines: Metal engines that could be started.
    """
    return [
        NATIVE,
        *(
            Accessor(name, f"mlxhog.doctor.probes_{name.partition(':')[0]}:cpu_writer")
            for name in ("torch:cpu", "mlx:cpu")
            if missing(name, machine) is None
        ),
        *(Accessor(f"metal:{name}", f"{__name__}:metal", (name,)) for name in usable_engines),
    ]


def all_readers(machine: Machine) -> list[tuple[str, Accessor]]:
    """Return every ("snapshot" or "live", reader) of this machine, named by its backend."""
    readers = [("snapshot", Accessor("native", f"{__name__}:NativeReader"))]
    for backend in ("mlx:cpu", "torch:cpu", "mlx:gpu", "torch:mps"):
        framework, device = backend.split(":")
        if missing(backend, machine) is None:
            module = f"mlxhog.doctor.probes_{framework}"
            readers.append(("snapshot", Accessor(backend, f"{module}:SnapshotReader", (device,))))
            if backend in ("torch:cpu", "mlx:gpu"):  # the two that can alias host memory
                readers.append(("live", Accessor(backend, f"{module}:LiveReader")))
    return readers


# -- two writers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Two writers, the kernel and the write mode, in threads or processes."""

    writers: tuple[Accessor, Accessor]
    kernel: str
    where: str
    mode: str

    def __str__(self) -> str:
        """Return it as a line."""
        a, b = (kind.name for kind in self.writers)
        return f"{a} + {b}, {self.kernel}, {self.where}, {self.mode}"


def cases(writers: Sequence[Accessor]) -> Iterator[Case]:
    """Yield every pair of writers, also of equal ones, in every mode that is possible.

    A Metal writer is atomic, so a writer beside it must use `cas`. Only native code is racy here.
    """
    for a, b in combinations_with_replacement(writers, 2):
        modes = ("cas",) if a.gpu or b.gpu else PROMISED
        for mode in (*modes, "racy") if a == b == NATIVE else modes:
            for kernel in KERNELS:
                for where in WHERE:
                    yield Case((a, b), kernel, where, mode)


def _kept(lane: Lane, accessor: Accessor) -> Any:
    """In a child: return the lane's writer or reader, made at its first use."""
    return lane.keep(accessor, lambda: accessor.make(lane.arena, lane.slot))


def add_until(
    lane: Lane, kind: Accessor, kernel: str, mode: str, seconds: float, limit: int, writers: int
) -> tuple[int, float]:
    """In a child: line up, then add 1.0 until the time is over, at most `limit` passes.

    Returns:
        The number of passes, and their time.
    """
    add: Pass = lane.keep((kind, kernel, mode), lambda: _kept(lane, kind)(kernel, mode, 1.0))
    line_up(lane.arena, writers)
    begin = now = time.perf_counter()
    passes = 0
    while passes < limit and now - begin < seconds:
        add()
        passes += 1
        now = time.perf_counter()
    return passes, now - begin


class Litmus:
    """The two children that write, and the arena they write to.

    Args:
        seconds: time for which the writers of one case add.

    Concurrency: used by one thread; without `close`, the children live as long as this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.arena: Arena = create_arena(max(slot for slots in SLOTS for slot in slots))
        self._children: list[Child] = []
        self._warm: set[tuple[Accessor, str, tuple[int, int]]] = set()

    @property
    def children(self) -> list[Child]:
        """The two processes, spawned when first needed and after a failure."""
        if not self._children:
            self._warm.clear()
            self._children = [Child(self.arena, slots) for slots in SLOTS]
        return self._children

    def give_up(self) -> None:
        """End the children; the next case gets new ones."""
        for child in self._children:
            child.close()
        self._children = []

    def close(self) -> None:
        """End the children and close the arena."""
        self.give_up()
        self.arena.close()

    def clear(self, kernel: str, value: float = 0.0) -> None:
        """Set every element and empty the start line, while no process writes or waits."""
        shared(self.arena, kernel)[:] = np.float32(value)
        for counter in ("steps", "version"):
            self.arena.counters.store(counter, 0)

    def run(self, case: Case) -> dict[str, Any]:
        """Run one case; returns a row of the record.

        `error` has the failure of a writer. `untold` is there if it proves nothing, because the
        machine was too busy.
        """
        watch = LoadWatch()
        row: dict[str, Any] = {
            "writers": [kind.name for kind in case.writers],
            "kernel": case.kernel,
            "where": case.where,
            "mode": case.mode,
            "adds": 0,
            "lost": 0,
            "torn": 0,
            "adds_per_s": 0.0,
        }
        try:
            self._warm_up(case)
            row |= self._measure(case)
        except Failed as failure:
            row |= _failed(failure, watch)
            self.give_up()
        return row

    def _warm_up(self, case: Case) -> None:
        """Let each writer import, compile and make one pass, alone, before the time counts."""
        for kind, at in zip(case.writers, WHERE[case.where], strict=True):
            if (kind, case.kernel, at) in self._warm:
                continue
            self.clear(case.kernel)
            child, lane = self.children[at[0]], at[1]
            child.start(lane, add_until, kind, case.kernel, case.mode, 1.0, 1, 1)
            child.take(lane, START_S + _GRACE_S)
            self._warm.add((kind, case.kernel, at))

    def _measure(self, case: Case) -> dict[str, Any]:
        """Run rounds until the time is over; each ends while float32 still counts exactly."""
        adds, lost, torn, seconds = 0, 0, 0, 0.0
        while seconds < self.seconds:
            tallies, torn_meanwhile = self._round(case, self.seconds - seconds)
            passes = sum(each for each, _ in tallies)
            missing_adds, wrong = count_lost(
                values_of(self.arena, case.kernel), case.kernel, passes
            )
            adds += passes * int(COUNTS[case.kernel].sum())
            lost, torn = lost + missing_adds, torn + wrong + torn_meanwhile
            seconds += max(spent for _, spent in tallies)
        return {"adds": adds, "lost": lost, "torn": torn, "adds_per_s": adds / seconds}

    def _round(self, case: Case, seconds: float) -> tuple[list[tuple[int, float]], int]:
        """Run one round from zero; returns the writers' passes and the number of torn values."""
        self.clear(case.kernel)
        limit = LIMITS[case.kernel]
        places = [(self.children[child], lane) for child, lane in WHERE[case.where]]
        for kind, (child, lane) in zip(case.writers, places, strict=True):
            child.start(lane, add_until, kind, case.kernel, case.mode, seconds, limit, 2)
        watch = ValueMonitor(case, 2 * limit)
        watched = WatchedTime()
        pipes = {child.pipe: child for child, _ in places}
        while not all(child.done(lane) for child, lane in places):
            for ready in connection.wait(list(pipes), _LOOK_S):
                pipes[ready].receive()  # type: ignore[index]  # wait() is typed as any waitable
            for child, lane in places:
                child.check(lane)
            watch(values_of(self.arena, case.kernel))
            if watched.look() > seconds + _GRACE_S:
                raise Late(f"no answer within {seconds + _GRACE_S:.0f} s")
        return [child.take(lane, 0.0) for child, lane in places], watch.torn


class ValueMonitor:
    """Counts values that no order of whole adds can explain.

    Args:
        case: that runs.
        passes: largest number of passes of both writers.
    """

    def __init__(self, case: Case, passes: int) -> None:
        self._most = passes * COUNTS[case.kernel]
        self._least = np.zeros_like(self._most)
        self._monotone = case.mode in PROMISED
        self.torn = 0

    def __call__(self, values: Float32) -> None:
        """Look at all values once."""
        sane = (values >= self._least) & (values <= self._most) & (values == np.rint(values))
        self.torn += int(values.size - np.count_nonzero(sane))
        if self._monotone:
            self._least = np.where(sane, values, self._least)


def count_lost(values: Float32, kernel: str, passes: int) -> tuple[int, int]:
    """Compare the values after a round with the number of adds.

    Returns:
        The number of lost adds, and of elements that no lost add explains.
    """
    expected = passes * COUNTS[kernel].astype(np.float64)
    sane = (values <= expected) & (values == np.rint(values)) & (values >= 0)
    lost = (expected - values)[sane].sum()
    return int(lost), int(values.size - np.count_nonzero(sane))


def broken(row: Mapping[str, Any]) -> bool:
    """Whether a row of two writers breaks a promise of mlxhog.

    Writers on a CPU must not fail, lose or tear; racy ones may lose. Losses of a GPU are a fact,
    not an error.
    """
    if any(name.startswith("metal:") for name in row["writers"]):
        return False
    failed = "error" in row and "untold" not in row
    return bool(row["torn"] or failed or (row["lost"] and row["mode"] in PROMISED))


def _failed(failure: Failed, watch: LoadWatch) -> dict[str, str]:
    """Return the fields of a failure; `untold` if a busy machine had no time for the processes."""
    load = watch.look()
    untold = {"untold": str(load)} if isinstance(failure, Late) and load.busy else {}
    return {"error": str(failure), **untold}


# -- a reader beside a writer ----------------------------------------------------------------------

LOW: Final = -5592405.0  # 0xCAAAAAAA
HIGH: Final = 13981013.0  # 0x4B555555; HIGH - LOW is exact in float32, and so are both sums


def try_reader(
    litmus: Litmus,
    kind: str,
    reader: Accessor,
    mode: str,
    *,
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """Run one reader beside the native writer, each in a process of its own.

    Args:
        litmus: has the children and the time to read.
        kind: "snapshot" or "live".
        reader: of this kind.
        mode: of the writes.
        patience_s: limit of the time until the reader sees a write.

    Returns:
        A row of the record: `samples` values read; `torn` of them never written; `backwards` that
        fell; `visible_s`, the longest time until the reader saw a published pass.
    """
    row: dict[str, Any] = {
        "reader": reader.name,
        "kind": kind,
        "writer": NATIVE.name,
        "mode": mode,
        "samples": 0,
        "torn": 0,
        "backwards": 0,
        "visible_s": 0.0,
    }
    seconds, watch = litmus.seconds / 2, LoadWatch()
    try:
        reading, writing = litmus.children
        reading.call(START_S + _GRACE_S, make_reader, reader)
        litmus.clear("dense")
        writing.call(START_S + _GRACE_S, add_until, NATIVE, "dense", mode, 0.0, 0, 1)
        for flipping in (True, False):
            litmus.clear("dense", LOW if flipping else 0.0)
            writing.start(0, write_until, mode, seconds, flipping)
            counts = reading.call(
                seconds + patience_s + _GRACE_S, read_until, reader, seconds, flipping, patience_s
            )
            writing.take(0, _GRACE_S)
            for key, value in counts.items():
                row[key] += value
    except Failed as failure:
        row |= _failed(failure, watch)
        litmus.give_up()
    return row


def make_reader(lane: Lane, reader: Accessor) -> None:
    """In a child: create the reader and read once, before the time counts."""
    _kept(lane, reader).read()


def read_until(
    lane: Lane, reader: Accessor, seconds: float, flipping: bool, patience_s: float
) -> dict[str, float]:
    """In a child: line up, then read and count wrong values until the time is over.

    Raises:
        TimeoutError: a published pass did not become visible.
    """
    source: LitmusReader = _kept(lane, reader)
    counters = lane.arena.counters
    line_up(lane.arena, 2)
    samples = torn = backwards = 0
    visible_s = 0.0
    before = np.zeros(FLOATS, np.float32)
    deadline = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < deadline:
        version = counters.load("version")
        values = source.read()
        samples += values.size
        if flipping:
            torn += int(np.count_nonzero((values != LOW) & (values != HIGH)))
            continue
        while True:
            torn += int(np.count_nonzero((values != np.rint(values)) | (values < 0)))
            backwards += int(np.count_nonzero(values < before))
            before, now = values, time.perf_counter()
            if values.min() >= version or torn:
                break
            if now - begin > patience_s:
                raise TimeoutError(f"a write was not seen within {patience_s:g} s")
            values = source.read()
        visible_s = max(visible_s, now - begin)
    return {"samples": samples, "torn": torn, "backwards": backwards, "visible_s": visible_s}


def write_until(lane: Lane, mode: str, seconds: float, flipping: bool) -> None:
    """In a child: line up, then add and publish each pass until the time is over."""
    adder: Adder = _kept(lane, NATIVE)
    values = (HIGH - LOW, LOW - HIGH) if flipping else (1.0,)
    adds = [adder("dense", mode, value) for value in values]
    line_up(lane.arena, 2)
    deadline = time.perf_counter() + seconds
    for passes in range(LIMITS["dense"]):
        adds[passes % len(adds)]()
        lane.arena.counters.store("version", passes + 1)
        if time.perf_counter() >= deadline:
            break
