"""Litmus tests of concurrent writers and readers: lost adds, torn values and speed.

Two processes wait at a start line, then add 1.0 to every element, pass after pass, until the time
is over or float32 could no longer count exactly; meanwhile this process reads. Afterwards every
element must equal the number of its adds. A value is torn if it is not an integer, is larger than
what was written, or decreases in a lossless mode. Modes lossless and cas must lose nothing; racy
writers may lose adds, but no value may be torn.

A reader in another process must see whole values, in order and soon: the writer publishes the
number of its passes, and each must become visible after a short time.

    writer      native        the kernels of `mlxhog.optim.updates`, as every CPU worker adds
                metal:mlx ..  our Metal kernels on an Apple GPU
    reader      mlx:gpu ..    a framework that computes directly on shared memory (live)

The arena has a parameter `dense` of 1024 floats with one stripe lock, and `rows` of 16 x 64 with a
lock per row, whose adds name rows 0 .. 15 and every second row again. Its counters: `steps` are the
processes at the start line, `version` the number of the last published pass. An arena has one write
mode; here it changes between cases, while no writer runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from multiprocessing import connection
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import arena
from mlxhog.arena import Arena
from mlxhog.arena.child import START_S, Child, Failed, Lane, TimedOut
from mlxhog.arena.process import WatchedTime
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.workers import missing
from mlxhog.metal import engines
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Int32, Rows
from mlxhog.optim.metal_steps import MetalSteps

FLOATS: Final = 1024
ROWS: Final = 16
INDEX: Final[Int32] = np.concatenate([np.arange(ROWS), np.arange(0, ROWS, 2)]).astype(np.int32)
COUNTS: Final[Mapping[str, Float32]] = {
    "dense": np.ones(FLOATS, np.float32),
    "rows": np.repeat(np.bincount(INDEX).astype(np.float32), FLOATS // ROWS),
}
"""Kernel -> number of adds to each element in one pass."""
LIMITS: Final = {"dense": 1 << 23, "rows": 1 << 22}
"""Kernel -> passes of each of two writers up to which float32 counts exactly."""
LOSSLESS: Final = ("lossless", "cas")
LIVE: Final = ("mlx:gpu", "torch:cpu")  # backends that can compute directly on host memory
PATIENCE_S: Final = 5.0  # until a reader sees a write
METAL_TIMES: Final = 20
"""How much longer than a case of CPUs one with a Metal writer takes, whose launches are mostly time
of the host, so that two of them rarely add at once."""
_ARRIVAL_S: Final = 20.0
_POLL_S = 0.001
_GRACE_S = 30.0  # for a writer that compiles its kernel, or waits for a core

Row = dict[str, Any]
Pass = Callable[[], object]  # adds 1.0 to each element of a kernel `COUNTS[kernel]` times
Reader = Callable[[], Float32]
"""Returns a private copy of the dense values as its framework sees them, (1024,) float32."""


def inconclusive(failure: Failed, watch: LoadWatch) -> str:
    """Return the load of a busy machine that may have caused a child's failure, else ""."""
    load = watch.look()
    return str(load) if isinstance(failure, TimedOut) and load.busy else ""


# -- the arena, writers and readers ----------------------------------------------------------------


def shared(mapped: Arena, kernel: str) -> Float32:
    """Return the shared floats that a kernel adds to, (1024,)."""
    slot = mapped.layout.slots[kernel]
    return mapped.params[slot.offset : slot.offset + slot.size]


def values_of(mapped: Arena, kernel: str) -> Float32:
    """Copy the current values, (1024,) float32; writers may run meanwhile."""
    copy = np.empty(FLOATS, np.float32)
    updates.snapshot(copy, shared(mapped, kernel))
    return copy


def torn(
    values: Float32, most: NDArray[Any] | float, least: Float32 | float = 0.0
) -> NDArray[np.bool_]:
    """Which values are no integer from `least` to `most`, NaN included."""
    whole: NDArray[np.bool_] = values == np.rint(values)
    return ~(whole & (values >= least) & (values <= most))


@dataclass(frozen=True)
class Accessor:
    """A writer or a reader, created in the process that uses it."""

    name: str
    make: Callable[..., Any]
    """A writer's: (arena, slot, kernel, mode) -> its `Pass`; a reader's: arena -> its `Reader`."""


def increments(kernel: str) -> Float32 | Rows:
    """Return what one pass adds to the parameter of a kernel."""
    if kernel == "dense":
        return np.ones(FLOATS, np.float32)
    return Rows(INDEX, np.ones((len(INDEX), FLOATS // ROWS), np.float32))


def native(mapped: Arena, slot: int, kernel: str, mode: str) -> Pass:
    """Create a writer with native kernels."""
    place, number = mapped.layout.slots[kernel], updates.WRITE_MODES[mode]
    how: dict[str, Any] = {"locks": mapped.locks(slot), "mode": number, "seed": slot}
    return partial(updates.add, mapped.params, place, increments(kernel), **how)


def metal(mapped: Arena, slot: int, kernel: str, mode: str, *, name: str) -> Pass:
    """Create a writer that updates the arena in place on a Metal engine."""
    slots, add = mapped.layout.slots, (-1.0, 1.0, 0.0, 0.0)  # rates of a step that is an add
    steps = MetalSteps(engines.create(name), mapped.params, slots, frozenset())
    ones = increments(kernel)
    ones = ones.coalesced() if isinstance(ones, Rows) else ones
    return partial(steps.write, [(slots[kernel], ones)], add, add)


def live(mapped: Arena, *, framework: str) -> Reader:
    """Create a reader that computes directly on shared memory; imports its framework."""
    reader: Reader = importlib.import_module(f"mlxhog.doctor.probes_{framework}").live(mapped)
    return reader


NATIVE: Final = Accessor("native", native)


def all_readers(machine: Machine) -> list[Accessor]:
    """Return every reader of this machine, named by its backend."""
    here = [name for name in LIVE if missing(name, machine) is None]
    return [Accessor(name, partial(live, framework=name.partition(":")[0])) for name in here]


# -- in the children -------------------------------------------------------------------------------


def line_up(mapped: Arena, processes: int) -> None:
    """Wait at the start line for all `processes`; TimeoutError if one does not arrive."""
    mapped.counters.add("steps")
    watched = WatchedTime()
    while mapped.counters.load("steps") < processes:
        if watched.look() > _ARRIVAL_S:
            raise TimeoutError("the other process did not reach the start line")
        time.sleep(0)


def add_until(
    lane: Lane, kind: Accessor, kernel: str, mode: str, *, seconds: float, processes: int = 1
) -> tuple[int, float]:
    """Line up, then add until the time is over, at least once; return passes and seconds."""
    arguments = (lane.arena, lane.slot, kernel, mode)
    add: Pass = lane.keep((kind.name, kernel, mode), lambda: kind.make(*arguments))
    line_up(lane.arena, processes)
    begin, spent_s, passes = time.perf_counter(), 0.0, 0
    while not passes or (passes < LIMITS[kernel] and spent_s < seconds):
        add()
        passes += 1
        lane.arena.counters.store("version", passes)
        spent_s = time.perf_counter() - begin
    return passes, spent_s


def read_until(
    lane: Lane, reader: Accessor, patience_s: float, *, seconds: float, processes: int = 1
) -> Row:
    """Line up, then read and count wrong values until the time is over, at least once.

    Raises:
        TimeoutError: a published pass did not become visible.
    """
    read: Reader = lane.keep(reader.name, lambda: reader.make(lane.arena))
    counters = lane.arena.counters
    line_up(lane.arena, processes)
    samples = n_torn = backwards = 0
    visible_s = 0.0
    before = np.zeros(FLOATS, np.float32)
    begin = now = time.perf_counter()
    while now - begin <= seconds or not samples:
        version, since = counters.load("version"), now
        while True:
            values = read()
            most = counters.load("version") + 2  # a pass is in progress, one number on its way
            samples += values.size
            n_torn += int(torn(values, most).sum())
            backwards += int((values < before).sum())
            before, now = values, time.perf_counter()
            if values.min() >= version or n_torn:
                break
            if now - since > patience_s:
                raise TimeoutError(f"a write was not seen within {patience_s:g} s")
        visible_s = max(visible_s, now - since)
    return {"samples": samples, "torn": n_torn, "backwards": backwards, "visible_s": visible_s}


# -- the tests -------------------------------------------------------------------------------------


class LitmusCase(NamedTuple):
    """Two writers, the kernel and the write mode."""

    writers: tuple[Accessor, Accessor]
    kernel: str
    mode: str

    def __str__(self) -> str:
        a, b = (kind.name for kind in self.writers)
        return f"{a} + {b}, {self.kernel}, {self.mode}"


def cases(usable: Sequence[str]) -> Iterator[LitmusCase]:
    """Yield every pair of writers, equal ones included, in every possible mode.

    A Metal writer, on each of the usable engines, is atomic, so one beside it must use `cas`.
    """
    on_gpu = [Accessor(f"metal:{name}", partial(metal, name=name)) for name in usable]
    for pair in combinations_with_replacement([NATIVE, *on_gpu], 2):
        for mode in (*LOSSLESS, "racy") if pair == (NATIVE, NATIVE) else ("cas",):
            yield from (LitmusCase(pair, kernel, mode) for kernel in COUNTS)


class Litmus:
    """Two child processes that write and read, and their arena.

    A case takes `seconds`, or `METAL_TIMES` as long.

    Concurrency: used by one thread; without `close`, the children live as long as this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        parameters = {
            "dense": ParamSpec("dense", (FLOATS,), "zeros"),
            "rows": ParamSpec("rows", (ROWS, FLOATS // ROWS), "zeros", kind="rows"),
        }
        self.arena = Arena.create(arena.plan(parameters, max_workers=2, n_tickets=1))
        self._children: list[Child] = []  # spawned when first needed, and after a failure

    def _end_children(self) -> None:
        for child in self._children:
            child.close()
        self._children = []

    def close(self) -> None:
        """End the children and close the arena."""
        self._end_children()
        self.arena.close()

    def run(self, case: LitmusCase) -> Row:
        """Run one case of two writers; returns a row of the record."""
        (a, b), kernel, mode = case
        counts = COUNTS[kernel].astype(np.float64)
        n_torn, least, most = 0, np.zeros(FLOATS, np.float32), 2 * LIMITS[kernel] * counts

        def look() -> None:
            nonlocal least, n_torn
            values = values_of(self.arena, kernel)
            n_torn += int(torn(values, most, least).sum())
            least = values if mode in LOSSLESS else least

        def measure() -> Row:
            writers = (add_until, a, kernel, mode), (add_until, b, kernel, mode)
            on_gpu = any(one.name.startswith("metal:") for one in (a, b))
            seconds = self.seconds * (METAL_TIMES if on_gpu else 1)
            tallies = self._at_once(kernel, writers, seconds, look)
            passes = sum(each for each, _ in tallies)
            # Final values that no lost add explains, and the lost adds of the others.
            values, expected = values_of(self.arena, kernel), passes * counts
            wrong, adds = torn(values, expected), passes * int(counts.sum())
            return {
                "adds": adds,
                "lost": int((expected - values)[~wrong].sum()),
                "torn": n_torn + int(wrong.sum()),
                "adds_per_s": adds / max(spent_s for _, spent_s in tallies),
            }

        row: Row = {"writers": [a.name, b.name], "kernel": kernel, "mode": mode}
        row |= dict.fromkeys(("adds", "lost", "torn"), 0) | {"adds_per_s": 0.0}
        return row | self._measured(measure)

    def read(self, reader: Accessor, mode: str, *, patience_s: float = PATIENCE_S) -> Row:
        """Run one of `all_readers` beside the native writer, each in a process of its own.

        It must see a write within `patience_s`.

        Returns:
            A row of the record: `samples` values read; `torn` of them never written; `backwards`
            that fell; `visible_s`, the longest time until a published pass was seen.
        """

        def measure() -> Row:
            both = (read_until, reader, patience_s), (add_until, NATIVE, "dense", mode)
            seen: Row = self._at_once("dense", both, self.seconds, patience_s=patience_s)[0]
            return seen

        row: Row = {"reader": reader.name, "kind": "live", "writer": NATIVE.name, "mode": mode}
        row |= dict.fromkeys(("samples", "torn", "backwards"), 0) | {"visible_s": 0.0}
        return row | self._measured(measure)

    def _measured(self, measure: Callable[[], Row]) -> Row:
        """Return the measurement, or `error`, with `inconclusive` if the machine was busy."""
        watch = LoadWatch()
        try:
            return measure()
        except Failed as failure:
            self._end_children()
            reason = inconclusive(failure, watch)
            return {"error": str(failure)} | ({"inconclusive": reason} if reason else {})

    def _at_once(
        self,
        kernel: str,
        both: tuple[tuple[Any, ...], tuple[Any, ...]],
        seconds: float,
        look: Callable[[], object] = lambda: None,
        *,
        patience_s: float = 0.0,
    ) -> list[Any]:
        """Run two functions in the children at once, after a pass alone, and `look` meanwhile."""

        def clear() -> None:
            shared(self.arena, kernel)[:] = 0
            for counter in ("steps", "version"):
                self.arena.counters.store(counter, 0)

        self._children = self._children or [Child(self.arena, slot) for slot in (1, 2)]
        for child, (function, *arguments) in zip(self._children, both, strict=True):
            clear()
            child.call(START_S + _GRACE_S, function, *arguments, seconds=0.0)
        clear()
        for child, (function, *arguments) in zip(self._children, both, strict=True):
            child.start(function, *arguments, seconds=seconds, processes=2)
        running: dict[Any, Child] = {child.pipe: child for child in self._children}
        results, watched = dict[Any, Any](), WatchedTime()
        while running:
            for pipe in connection.wait(list(running), _POLL_S):
                results[pipe] = running.pop(pipe).await_result(0.0)
            look()
            if running and watched.look() > (limit_s := seconds + patience_s + _GRACE_S):
                raise TimedOut(f"no answer within {limit_s:.0f} s")
        return [results[child.pipe] for child in self._children]
