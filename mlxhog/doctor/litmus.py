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

    writer      native        the kernels of `mlxhog.optim.updates`, as every CPU worker adds
                metal:mlx ..  our Metal kernels on an Apple GPU
    reader      mlx:gpu ..    a framework that computes with the shared bytes themselves (live)

The arena has a parameter `dense` of 1024 floats with one stripe lock, and `rows` of 16 x 64 with a
lock per row, whose adds name rows 0 .. 15 and every second again. Its counters: `steps` are the
writers at the start line, `version` the number of the last published pass. An arena has one write
mode; here the mode changes between rounds, while no writer runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement, product
from multiprocessing import connection
from typing import Any, Final

import numpy as np

from mlxhog import arena
from mlxhog.arena import Arena
from mlxhog.arena.child import START_S, Child, Failed, Lane, Late
from mlxhog.arena.process import WatchedTime
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.workers import missing
from mlxhog.metal import engines
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import updates
from mlxhog.optim.gradients import Rows
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.updates import Float32, Int32

FLOATS: Final = 1024
ROWS: Final = 16
INDEX: Final[Int32] = np.concatenate([np.arange(ROWS), np.arange(0, ROWS, 2)]).astype(np.int32)
COUNTS: Final[Mapping[str, Float32]] = {
    "dense": np.ones(FLOATS, np.float32),
    "rows": np.repeat(np.bincount(INDEX).astype(np.float32), FLOATS // ROWS),
}
"""Kernel -> number of adds to each element in one pass."""
SHAPES: Final = {"dense": (FLOATS,), "rows": (len(INDEX), FLOATS // ROWS)}
"""Kernel -> shape of the increments of one pass."""
LIMITS: Final = {"dense": 1 << 23, "rows": 1 << 22}
"""Kernel -> passes of each of two writers that every element can count exactly."""
WHERE: Final = ("threads", "processes")
SLOTS: Final = ((1, 2), (3,))
"""Worker slots of the two children."""
PROMISED: Final = ("lossless", "cas")
PATIENCE_S: Final = 5.0  # until a reader sees a write
LOW: Final = -5592405.0  # 0xCAAAAAAA
HIGH: Final = 13981013.0  # 0x4B555555; HIGH - LOW is exact in float32, and so are both sums
_ARRIVAL_S: Final = 20.0
_LOOK_S = 0.001
_GRACE_S = 30.0  # for a writer that compiles its kernel, or waits for a core

Row = dict[str, Any]
Pass = Callable[[], object]
Adder = Callable[[str, str, float], Pass]
"""(kernel, mode, value) -> one pass, which adds `value` to each element `COUNTS[kernel]` times."""
Reader = Callable[[], Float32]
"""Returns a private copy of the dense values that its framework sees now, (1024,) float32."""


# -- the arena, writers and readers ----------------------------------------------------------------


def create_arena(slots: int) -> Arena:
    """Create an arena for litmus tests with `slots` writer slots."""
    parameters = {
        "dense": ParamSpec("dense", (FLOATS,), "zeros"),
        "rows": ParamSpec("rows", (ROWS, FLOATS // ROWS), "zeros", kind="rows"),
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


@dataclass(frozen=True)
class Accessor:
    """A writer or a reader, named as in the table; `make(arena, slot)` is its `Adder` or `Reader`.

    `make` is called in the thread that uses the result.
    """

    name: str
    make: Callable[[Arena, int], Any]

    def of(self, lane: Lane) -> Any:
        """In a child: return the lane's writer or reader, made at its first use."""
        key = self.name, getattr(self.make, "func", self.make)
        return lane.keep(key, lambda: self.make(lane.arena, lane.slot))


def native(mapped: Arena, slot: int) -> Adder:
    """Create the writer by native kernels."""
    locks = mapped.locks(slot)

    def adder(kernel: str, mode: str, value: float) -> Pass:
        array = np.full(SHAPES[kernel], value, np.float32)
        increments = array if kernel == "dense" else Rows(INDEX, array)
        mode_number, place = updates.WRITE_MODES[mode], mapped.layout.slots[kernel]
        return partial(
            updates.add, mapped.params, place, increments, locks=locks, mode=mode_number, seed=slot
        )

    return adder


def metal(mapped: Arena, slot: int, *, name: str) -> Adder:
    """Create the writer that steps in place in the arena that a Metal engine imported."""
    slots, add = mapped.layout.slots, (-1.0, 1.0, 0.0, 0.0)  # rates of a step that is an add
    steps = MetalSteps(engines.create(name), mapped.params, slots, frozenset())

    def adder(kernel: str, mode: str, value: float) -> Pass:
        array = np.full(SHAPES[kernel], value, np.float32)
        increments = array if kernel == "dense" else Rows(INDEX, array).coalesced()
        return partial(steps.write, [(slots[kernel], increments)], add, add)

    return adder


def live(mapped: Arena, slot: int, *, framework: str) -> Reader:
    """Create the reader that computes with the shared bytes; imports its framework."""
    reader: Reader = importlib.import_module(f"mlxhog.doctor.probes_{framework}").live(mapped)
    return reader


NATIVE: Final = Accessor("native", native)
LIVE: Final = ("mlx:gpu", "torch:cpu")
"""Backends that can compute with host memory itself."""


def all_writers(usable_engines: Sequence[str]) -> list[Accessor]:
    """Return every writer of this machine, with the Metal engines that could be started."""
    return [NATIVE, *(Accessor(f"metal:{one}", partial(metal, name=one)) for one in usable_engines)]


def all_readers(machine: Machine) -> list[Accessor]:
    """Return every reader of this machine, named by its backend."""
    here = [name for name in LIVE if missing(name, machine) is None]
    return [Accessor(name, partial(live, framework=name.partition(":")[0])) for name in here]


# -- in the children -------------------------------------------------------------------------------


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


def add_until(
    lane: Lane, kind: Accessor, kernel: str, mode: str, seconds: float, limit: int, writers: int
) -> tuple[int, float]:
    """Line up, then add 1.0 until the time is over; returns passes (at most `limit`) and time."""
    add: Pass = lane.keep((kind.name, kernel, mode), lambda: kind.of(lane)(kernel, mode, 1.0))
    line_up(lane.arena, writers)
    begin = now = time.perf_counter()
    passes = 0
    while passes < limit and now - begin < seconds:
        add()
        passes += 1
        now = time.perf_counter()
    return passes, now - begin


def add_each(
    lane: Lane, kinds: Sequence[Accessor], kernel: str, mode: str, seconds: float, limit: int,
    writers: int,
) -> list[tuple[int, float]]:  # fmt: skip
    """In threads that later calls use again: return what `add_until` does for each writer."""
    threads = lane.keep("threads", lambda: [ThreadPoolExecutor(1) for _ in SLOTS])
    lanes = lane.keep("lanes", lambda: [lane, Lane(lane.arena, lane.slot + 1)])
    how = kernel, mode, seconds, limit, writers
    adding = [
        thread.submit(add_until, own, kind, *how)
        for thread, own, kind in zip(threads, lanes, kinds, strict=False)
    ]
    for ended in wait(adding, return_when=FIRST_EXCEPTION).done:
        ended.result()  # raises its error
    return [one.result() for one in adding]


def write_until(lane: Lane, mode: str, seconds: float, flipping: bool) -> None:
    """Line up, then add and publish each pass until the time is over."""
    adder: Adder = NATIVE.of(lane)
    values = (HIGH - LOW, LOW - HIGH) if flipping else (1.0,)
    adds = [adder("dense", mode, value) for value in values]
    line_up(lane.arena, 2)
    deadline = time.perf_counter() + seconds
    for passes in range(LIMITS["dense"]):
        adds[passes % len(adds)]()
        lane.arena.counters.store("version", passes + 1)
        if time.perf_counter() >= deadline:
            break


def read_once(lane: Lane, reader: Accessor) -> None:
    """Create the reader and read, before the time counts."""
    reader.of(lane)()


def read_until(
    lane: Lane, reader: Accessor, seconds: float, flipping: bool, patience_s: float
) -> dict[str, float]:
    """Line up, then read and count wrong values until the time is over.

    Raises:
        TimeoutError: a published pass did not become visible.
    """
    read: Reader = reader.of(lane)
    counters = lane.arena.counters
    line_up(lane.arena, 2)
    samples = torn = backwards = 0
    visible_s = 0.0
    before = np.zeros(FLOATS, np.float32)
    deadline = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < deadline:
        version = counters.load("version")
        values = read()
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
            values = read()
        visible_s = max(visible_s, now - begin)
    return {"samples": samples, "torn": torn, "backwards": backwards, "visible_s": visible_s}


# -- the tests -------------------------------------------------------------------------------------


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

    A Metal writer is atomic, so a writer beside it must use `cas`.
    """
    for pair in combinations_with_replacement(writers, 2):
        on_gpu = any(one.name.startswith("metal:") for one in pair)
        for mode in ("cas",) if on_gpu else (*PROMISED, "racy"):
            yield from (Case(pair, kernel, where, mode) for kernel, where in product(COUNTS, WHERE))


class Litmus:
    """The two children that write and read, and their arena.

    Args:
        seconds: time for which the writers of one case add.

    Concurrency: used by one thread; without `close`, the children live as long as this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.arena: Arena = create_arena(3)
        self._children: list[Child] = []

    @property
    def children(self) -> list[Child]:
        """The two processes, spawned when first needed and after a failure."""
        if not self._children:
            self._children = [Child(self.arena, slots) for slots in SLOTS]
        return self._children

    def _give_up(self) -> None:
        for child in self._children:
            child.close()
        self._children = []

    def close(self) -> None:
        """End the children and close the arena."""
        self._give_up()
        self.arena.close()

    def _clear(self, kernel: str, value: float = 0.0) -> None:
        """Set every element and empty the start line, while no process writes or waits."""
        shared(self.arena, kernel)[:] = np.float32(value)
        for counter in ("steps", "version"):
            self.arena.counters.store(counter, 0)

    def _tried(self, row: Row, measure: Callable[[], Row]) -> Row:
        """Return a row of the record with what `measure` returns.

        `error` has a failure. `untold` is there if it proves nothing, because the machine was too
        busy.
        """
        watch = LoadWatch()
        try:
            return {**row, **measure()}
        except Failed as failure:
            load = watch.look()
            self._give_up()
            untold = {"untold": str(load)} if isinstance(failure, Late) and load.busy else {}
            return row | {"error": str(failure), **untold}

    def run(self, case: Case) -> Row:
        """Run one case of two writers; returns a row of the record."""
        row = {
            "writers": [kind.name for kind in case.writers],
            "kernel": case.kernel,
            "where": case.where,
            "mode": case.mode,
            **dict.fromkeys(("adds", "lost", "torn"), 0),
            "adds_per_s": 0.0,
        }
        return self._tried(row, lambda: self._measure(case))

    def _measure(self, case: Case) -> Row:
        kernel, limit = case.kernel, LIMITS[case.kernel]
        together = case.where == "threads"
        groups = (case.writers,) if together else tuple((kind,) for kind in case.writers)
        children = dict(zip(self.children, groups, strict=False))
        for child, kinds in children.items():  # import, compile
            self._clear(kernel)
            child.call(START_S + _GRACE_S, add_each, kinds, kernel, case.mode, 1.0, 1, 1)
        self._clear(kernel)
        for child, kinds in children.items():
            child.start(add_each, kinds, kernel, case.mode, self.seconds, limit, 2)
        torn, watched = TornValues(kernel, case.mode, 2 * limit), WatchedTime()
        running: dict[Any, Child] = {child.pipe: child for child in children}
        tallies: list[tuple[int, float]] = []
        while running:
            for ready in connection.wait(list(running), _LOOK_S):
                tallies += running.pop(ready).take(0.0)
            torn.look(values_of(self.arena, kernel))
            if running and watched.look() > self.seconds + _GRACE_S:
                raise Late(f"no answer within {self.seconds + _GRACE_S:.0f} s")
        passes = sum(each for each, _ in tallies)
        # Of the final values: those that no lost add explains, and the lost adds of the others.
        values, expected = values_of(self.arena, kernel), passes * COUNTS[kernel].astype(np.float64)
        sane = (values <= expected) & (values == np.rint(values)) & (values >= 0)
        adds = passes * int(COUNTS[kernel].sum())
        return {
            "adds": adds,
            "lost": int((expected - values)[sane].sum()),
            "torn": int(np.count_nonzero(~sane)) + torn.count,
            "adds_per_s": adds / max(spent for _, spent in tallies),
        }

    def read(self, reader: Accessor, mode: str, *, patience_s: float = PATIENCE_S) -> Row:
        """Run one reader beside the native writer, each in a process of its own.

        Args:
            reader: one of `all_readers`.
            mode: of the writes.
            patience_s: limit of the time until the reader sees a write.

        Returns:
            A row of the record: `samples` values read; `torn` of them never written; `backwards`
            that fell; `visible_s`, the longest time until a published pass was seen.
        """
        counts = dict.fromkeys(("samples", "torn", "backwards"), 0) | {"visible_s": 0.0}
        row = {"reader": reader.name, "kind": "live", "writer": NATIVE.name, "mode": mode, **counts}
        seconds = self.seconds / 2

        def measure() -> Row:
            reading, writing = self.children
            reading.call(START_S + _GRACE_S, read_once, reader)
            self._clear("dense")
            writing.call(START_S + _GRACE_S, add_until, NATIVE, "dense", mode, 0.0, 0, 1)
            for flipping in (True, False):
                self._clear("dense", LOW if flipping else 0.0)
                writing.start(write_until, mode, seconds, flipping)
                limit_s = seconds + patience_s + _GRACE_S
                seen = reading.call(limit_s, read_until, reader, seconds, flipping, patience_s)
                writing.take(_GRACE_S)
                for key, value in seen.items():
                    counts[key] += value
            return counts

        return self._tried(row, measure)


class TornValues:
    """Counts values that no order of whole adds explains, of at most `passes` passes in all."""

    def __init__(self, kernel: str, mode: str, passes: int) -> None:
        self._most = passes * COUNTS[kernel]
        self._least = np.zeros_like(self._most)
        self._may_fall = mode not in PROMISED
        self.count = 0

    def look(self, values: Float32) -> None:
        """Look at all values once."""
        sane = (values >= self._least) & (values <= self._most) & (values == np.rint(values))
        self.count += int(np.count_nonzero(~sane))
        if not self._may_fall:
            self._least = np.where(sane, values, self._least)
