"""Two writers at once, and a reader beside a writer: lost adds, torn values and speed.

Both writers wait at a start line, then add 1.0 to every element, pass after pass, until the time is
over or float32 could no longer count exactly; meanwhile this process reads. Afterwards every
element must equal the number of its adds. A value is torn if it is not a whole number, is too
large, or (in modes that lose nothing) falls.

Concurrency promises tested: lossless and cas lose nothing; racy and naive writers may, but no
value tears.

A reader in another process must see whole values, in order and soon:

    counting    the writer adds 1.0; the reader must see whole numbers that never fall
    flipping    the writer alternates between two values without a common byte, by adding their
                difference; any third value is torn
    publishing  the writer adds 1.0 and waits until the reader has seen it

A snapshot may hold elements of different ages; each of them must be whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from multiprocessing import connection
from typing import Any, Final

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.child import START_S, Child, Failed, Lane, Late
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.doctor.accessors import (
    COUNTS,
    FLOATS,
    KERNELS,
    LIMITS,
    Accessor,
    Bench,
    LitmusReader,
    Pass,
    Writer,
    create_arena,
)
from mlxhog.machine.load import LoadWatch
from mlxhog.optim.updates import Float32

WHERE: Final = ("threads", "processes")
PROMISED: Final = ("lossless", "cas")
SLOTS: Final = ((1, 2), (3,))
"""Worker slots of the two children, a lane each."""
LANES: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "threads": ((0, 0), (0, 1)),
    "processes": ((0, 0), (1, 0)),
}
"""Child and lane of each writer."""
_LOOK_S = 0.001
_GRACE_S = 30.0  # for a writer that compiles its kernel, or waits for a core


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

    A Metal writer is atomic, so a writer beside it must use `cas`. Halves have `cas` only. Naive
    writers meet each other, on a GPU only themselves. Only native code is tested as racy.
    """
    for a, b in combinations_with_replacement(writers, 2):
        for mode in _modes(a, b):
            kernels = {"naive": ("dense",), "cas": KERNELS}.get(mode, ("dense", "rows"))
            for kernel in kernels:
                for where in WHERE:
                    yield Case((a, b), kernel, where, mode)


def _modes(a: Accessor, b: Accessor) -> tuple[str, ...]:
    if a.naive != b.naive:
        return ()
    if a.naive:  # on a GPU beside itself: the arena beside a GPU is always written by atomic adds
        return ("naive",) if a == b or not (a.gpu or b.gpu) else ()
    if a.gpu or b.gpu:
        return ("cas",)
    return ("lossless", "cas", "racy") if a.name == b.name == "native" else ("lossless", "cas")


@dataclass(frozen=True)
class Passes:
    """Passes of one writer in one round, and their time."""

    passes: int
    seconds: float


def add_until(
    lane: Lane, kind: Accessor, kernel: str, mode: str, seconds: float, limit: int, writers: int
) -> Passes:
    """In a child: line up, then add 1.0 until the time is over, at most `limit` passes."""
    place = lane.keep("bench", lambda: Bench(lane.arena))
    writer: Writer = lane.keep(kind, lambda: kind.make(place, lane.slot))
    add = lane.keep((kind, kernel, mode), lambda: writer.adder(kernel, mode, 1.0))
    place.line_up(writers)
    begin = now = time.perf_counter()
    passes = 0
    while passes < limit and now - begin < seconds:
        add()
        passes += 1
        now = time.perf_counter()
    return Passes(passes, now - begin)


class Litmus:
    """The two children that write, and the arena they write to.

    Args:
        seconds: time for which the writers of one case add.

    Concurrency: used by one thread; without `close`, the children live as long as this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.arena: Arena = create_arena(max(slot for slots in SLOTS for slot in slots))
        self.bench = Bench(self.arena)
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
        del self.bench
        self.arena.close()

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
            "emulated": any(kind.emulated for kind in case.writers),
            "naive": case.mode == "naive",
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
        for kind, at in zip(case.writers, LANES[case.where], strict=True):
            if (kind, case.kernel, at) in self._warm:
                continue
            self.bench.fill(case.kernel)
            self.bench.start_line()
            child, lane = self.children[at[0]], at[1]
            child.start(lane, add_until, kind, case.kernel, case.mode, 1.0, 1, 1)
            child.take(lane, START_S + _GRACE_S)
            self._warm.add((kind, case.kernel, at))

    def _measure(self, case: Case) -> dict[str, Any]:
        """Run rounds until the time is over; each ends while float32 still counts exactly."""
        adds, lost, torn, seconds = 0, 0, 0, 0.0
        limit = LIMITS[case.kernel]
        while seconds < self.seconds:
            tallies, torn_meanwhile = self._round(case, self.seconds - seconds, limit)
            passes = sum(tally.passes for tally in tallies)
            missing, wrong = count_lost(self.bench.values(case.kernel), case.kernel, passes)
            adds += passes * int(COUNTS[case.kernel].sum())
            lost, torn = lost + missing, torn + wrong + torn_meanwhile
            seconds += max(tally.seconds for tally in tallies)
        return {"adds": adds, "lost": lost, "torn": torn, "adds_per_s": adds / seconds}

    def _round(self, case: Case, seconds: float, limit: int) -> tuple[list[Passes], int]:
        """Run one round from zero; returns the writers' passes and the number of torn values."""
        self.bench.fill(case.kernel)
        self.bench.start_line()
        places = [(self.children[child], lane) for child, lane in LANES[case.where]]
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
            watch(self.bench.values(case.kernel))
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
    """Whether a row breaks a promise of mlxhog.

    Its writers on a CPU, and its Metal source under emulation, must not fail, lose or tear; racy
    ones may lose. Losses of a real GPU are a fact, not an error.
    """
    if "untold" in row and not (row["lost"] or row["torn"]):
        return False
    if row["naive"] or (row["mode"] == "racy" and not row["torn"] and "error" not in row):
        return False
    real_gpu = any(name.startswith("metal:") for name in row["writers"])
    return not real_gpu and bool(row["lost"] or row["torn"] or "error" in row)


# -- a reader beside a writer ----------------------------------------------------------------------

LOW: Final = -5592405.0  # 0xCAAAAAAA
HIGH: Final = 13981013.0  # 0x4B555555; HIGH - LOW is exact in float32, and so are both sums
READ_MODES: Final = ("lossless", "cas")
_PUBLISHED = 20
PATIENCE_S: Final = 5.0


def try_reader(
    litmus: Litmus,
    kind: str,
    reader: Accessor,
    writer: Accessor,
    mode: str,
    *,
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """Run one reader beside one writer, each in a process of its own.

    Args:
        litmus: has the children and the time to read.
        kind: "snapshot" or "live".
        reader: of this kind.
        writer: adds meanwhile.
        mode: of its writes.
        patience_s: limit of the time until the reader sees a write.

    Returns:
        A row of the record: `samples` values read; `torn` of them never written; `backwards` that
        fell; `visible_s`, the longest time until the reader saw a write.
    """
    row: dict[str, Any] = {
        "reader": reader.name,
        "kind": kind,
        "writer": writer.name,
        "mode": mode,
        "samples": 0,
        "torn": 0,
        "backwards": 0,
        "visible_s": 0.0,
        "emulated": reader.emulated or writer.emulated,
    }
    place, seconds, watch = litmus.bench, litmus.seconds / 2, LoadWatch()
    try:
        reading, writing = litmus.children
        reading.call(_GRACE_S, make_reader, reader)
        place.start_line()
        writing.call(_GRACE_S, add_until, writer, "dense", mode, 0.0, 0, 1)
        for flipping in (False, True):
            place.fill("dense", LOW if flipping else 0.0)
            place.start_line()
            writing.start(0, write_until, writer, mode, seconds, flipping)
            counts = reading.call(seconds + _GRACE_S, read_until, reader, seconds, flipping)
            writing.take(0, _GRACE_S)
            row["samples"] += counts.samples
            row["torn"] += counts.torn
            row["backwards"] += counts.backwards
        place.fill("dense")
        for counter in ("version", "eval_taken"):
            litmus.arena.counters.store(counter, 0)
        place.start_line()
        writing.start(0, publish, writer, mode)
        row["visible_s"] = reading.call(_GRACE_S, see, reader, patience_s)
        writing.take(0, _GRACE_S)
    except Failed as failure:
        row |= _failed(failure, watch)
        litmus.give_up()
    return row


def _failed(failure: Failed, watch: LoadWatch) -> dict[str, str]:
    """Return the fields of a failure; `untold` if a busy machine had no time for the processes."""
    load = watch.look()
    untold = {"untold": str(load)} if isinstance(failure, Late) and load.busy else {}
    return {"error": str(failure), **untold}


@dataclass(frozen=True)
class ReadCounts:
    """Number of values read, and of those that no writer can explain."""

    samples: int
    torn: int
    backwards: int


def make_reader(lane: Lane, reader: Accessor) -> None:
    """In a child: create the reader and read once, before the time counts."""
    _reader(lane, reader).read()


def read_until(lane: Lane, reader: Accessor, seconds: float, flipping: bool) -> ReadCounts:
    """In a child: line up, then read and count wrong values until the time is over."""
    source = _reader(lane, reader)
    _bench(lane).line_up(2)
    samples = torn = backwards = 0
    before = np.zeros(FLOATS, np.float32)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        values = source.read()
        samples += values.size
        if flipping:
            torn += int(np.count_nonzero((values != LOW) & (values != HIGH)))
            continue
        torn += int(np.count_nonzero((values != np.rint(values)) | (values < 0)))
        backwards += int(np.count_nonzero(values < before))
        before = values
    return ReadCounts(samples, torn, backwards)


def write_until(lane: Lane, writer: Accessor, mode: str, seconds: float, flipping: bool) -> None:
    """In a child: line up, then add until the time is over."""
    adds = _adders(lane, writer, mode, (HIGH - LOW, LOW - HIGH) if flipping else (1.0,))
    _bench(lane).line_up(2)
    deadline = time.perf_counter() + seconds
    for passes in range(LIMITS["dense"]):
        adds[passes % len(adds)]()
        if time.perf_counter() >= deadline:
            break


def publish(lane: Lane, writer: Accessor, mode: str) -> None:
    """In a child: add 1.0, publish the time and wait for the reader; `_PUBLISHED` times."""
    place = _bench(lane)
    (add,) = _adders(lane, writer, mode, (1.0,))
    counters = place.arena.counters
    place.line_up(2)
    for number in range(1, _PUBLISHED + 1):
        counters.store("start_ns", monotonic_ns())
        add()
        counters.store("version", number)
        place.wait_for("eval_taken", number, "the reader never saw a write")


def see(lane: Lane, reader: Accessor, patience_s: float) -> float:
    """In a child: return the longest time in seconds until a published value was visible.

    Raises:
        TimeoutError: a value did not become visible.
    """
    place, source = _bench(lane), _reader(lane, reader)
    counters = place.arena.counters
    place.line_up(2)
    longest = 0.0
    for number in range(1, _PUBLISHED + 1):
        place.wait_for("version", number, "the writer published nothing")
        deadline = time.perf_counter() + patience_s
        while source.read().min() < number:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"a write was not seen within {patience_s:g} s")
        longest = max(longest, (monotonic_ns() - counters.load("start_ns")) / 1e9)
        counters.store("eval_taken", number)
    return longest


def _bench(lane: Lane) -> Bench:
    return lane.keep("bench", lambda: Bench(lane.arena))


def _reader(lane: Lane, reader: Accessor) -> LitmusReader:
    source: LitmusReader = lane.keep(reader, lambda: reader.make(_bench(lane), lane.slot))
    return source


def _adders(lane: Lane, writer: Accessor, mode: str, values: Sequence[float]) -> list[Pass]:
    source: Writer = lane.keep(writer, lambda: writer.make(_bench(lane), lane.slot))
    return [source.adder("dense", mode, value) for value in values]
