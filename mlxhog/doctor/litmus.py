"""Two writers at once: how many of their adds were lost, what tore, how fast they were.

Both stand at a start line, then add 1.0 to every element, pass after pass, until the time is over
or the elements stop counting exactly; meanwhile this process reads. Afterwards every element must
be the number of adds it was given. A value that is not a whole number, is larger than it can be,
or (where nothing may be lost) falls, is torn.

Concurrency promises tested: lossless and cas lose nothing; racy and naive writers may, but no
value tears.
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
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.arena.process import WatchedTime
from mlxhog.doctor import bench
from mlxhog.doctor.accessors import Accessor, Writer
from mlxhog.doctor.bench import COUNTS, KERNELS, LIMITS, Bench
from mlxhog.optim.updates import Float32

WHERE: Final = ("threads", "processes")
PROMISED: Final = ("lossless", "cas")
SLOTS: Final = ((1, 2), (3,))
"""Worker slots of the two children, a lane each."""
LANES: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "threads": ((0, 0), (0, 1)),
    "processes": ((0, 0), (1, 0)),
}
"""Child and lane of both writers."""
_LOOK_S = 0.001
_GRACE_S = 30.0  # for a writer that has to compile its kernel, or waits for a core


@dataclass(frozen=True)
class Case:
    """Two writers, what they add to, where they live and how they add."""

    writers: tuple[Accessor, Accessor]
    kernel: str
    where: str
    mode: str

    def __str__(self) -> str:
        """One line for people."""
        a, b = (kind.name for kind in self.writers)
        return f"{a} + {b}, {self.kernel}, {self.where}, {self.mode}"


def cases(writers: Sequence[Accessor]) -> Iterator[Case]:
    """Every pair of writers, also of a kind with itself, in every mode that makes sense.

    A Metal writer is atomic, so who stands beside it has to use `cas`. Halves have `cas` only.
    Naive writers meet each other, on a GPU only themselves. Only native code is tried as racy.
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
    """What one writer did in one round."""

    passes: int
    seconds: float


def add_until(
    lane: Lane, kind: Accessor, kernel: str, mode: str, seconds: float, limit: int, writers: int
) -> Passes:
    """In a child: line up, then add 1.0 until the time is over or `limit` passes are done."""
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
        seconds: how long the writers of one case add.

    Concurrency: used by one thread; close it, or no child is ended before this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.arena: Arena = bench.create(max(slot for slots in SLOTS for slot in slots))
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
        """End the children and let go of the arena."""
        self.give_up()
        del self.bench
        self.arena.close()

    def run(self, case: Case) -> dict[str, Any]:
        """Try one case; a writer that fails is told in `error`, and ends nothing else."""
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
            row["error"] = str(failure)
            self.give_up()
        return row

    def _warm_up(self, case: Case) -> None:
        """Let each writer import, compile and make one pass, alone, before any clock runs."""
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
        """Rounds until the time is over; each ends before its elements stop counting exactly."""
        adds, lost, torn, seconds = 0, 0, 0, 0.0
        limit = LIMITS[case.kernel]
        while seconds < self.seconds:
            tallies, seen = self._round(case, self.seconds - seconds, limit)
            passes = sum(tally.passes for tally in tallies)
            missing, wrong = count_lost(self.bench.values(case.kernel), case.kernel, passes)
            adds += passes * int(COUNTS[case.kernel].sum())
            lost, torn = lost + missing, torn + wrong + seen
            seconds += max(tally.seconds for tally in tallies)
        return {"adds": adds, "lost": lost, "torn": torn, "adds_per_s": adds / seconds}

    def _round(self, case: Case, seconds: float, limit: int) -> tuple[list[Passes], int]:
        """One round from zero; returns what the writers did and how many torn values were seen."""
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
                raise Failed(f"no answer within {seconds + _GRACE_S:.0f} s")
        return [child.take(lane, 0.0) for child, lane in places], watch.torn


class ValueMonitor:
    """Counts values that no order of whole adds can explain.

    Args:
        case: what is being added.
        passes: the most that both writers can make.
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
    """Compare the end of a round with what was added.

    Returns:
        Adds that never arrived, and elements that hold what no lost add explains.
    """
    expected = passes * COUNTS[kernel].astype(np.float64)
    sane = (values <= expected) & (values == np.rint(values)) & (values >= 0)
    lost = (expected - values)[sane].sum()
    return int(lost), int(values.size - np.count_nonzero(sane))


def broken(row: Mapping[str, Any]) -> bool:
    """Whether a row breaks a promise of mlxhog's.

    Its writers on a CPU, and its Metal source under emulation, must not fail, lose or tear; racy
    ones may lose. A real GPU that loses is a fact and no error.
    """
    if row["naive"] or (row["mode"] == "racy" and not row["torn"] and "error" not in row):
        return False
    real_gpu = any(name.startswith("metal:") for name in row["writers"])
    return not real_gpu and bool(row["lost"] or row["torn"] or "error" in row)
