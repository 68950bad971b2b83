"""A reader beside a writer in another process: are values whole, in order, and soon there?

    counting    the writer adds 1.0; what is read must be whole numbers that never fall
    flipping    the writer goes between two values without a byte in common, by adding their
                difference; what is read must be one of the two, or it is torn
    publishing  the writer adds 1.0 and waits; the reader says when it sees that

A snapshot may hold elements of different ages; each of them must be whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mlxhog.arena.child import Failed, Lane
from mlxhog.arena.process import monotonic_ns
from mlxhog.doctor.accessors import Accessor, Pass, Reader, Writer
from mlxhog.doctor.bench import FLOATS, LIMITS, Bench
from mlxhog.doctor.litmus import Litmus, add_until

LOW: Final = -5592405.0  # 0xCAAAAAAA
HIGH: Final = 13981013.0  # 0x4B555555; HIGH - LOW is exact in float32, and so are both sums
MODES: Final = ("lossless", "cas")
_PUBLISHED = 20
_PATIENCE_S = 5.0
_GRACE_S = 30.0


def try_reader(
    litmus: Litmus, kind: str, reader: Accessor, writer: Accessor, mode: str
) -> dict[str, Any]:
    """Try one reader beside one writer, each in a process of its own.

    Args:
        litmus: the children, and for how long to read.
        kind: "snapshot" or "live".
        reader: of this kind.
        writer: who adds meanwhile.
        mode: how it adds.

    Returns:
        A row of the record: `samples` values looked at; `torn` that were never written;
        `backwards` that fell; `visible_s`, the longest time until a write was seen.
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
    place, seconds = litmus.bench, litmus.seconds / 2
    try:
        reading, writing = litmus.children
        reading.call(_GRACE_S, make_reader, reader)
        place.start_line()
        writing.call(_GRACE_S, add_until, writer, "dense", mode, 0.0, 0, 1)
        for flipping in (False, True):
            place.fill("dense", LOW if flipping else 0.0)
            place.start_line()
            writing.start(0, write_until, writer, mode, seconds, flipping)
            seen = reading.call(seconds + _GRACE_S, read_until, reader, seconds, flipping)
            writing.take(0, _GRACE_S)
            row["samples"] += seen.samples
            row["torn"] += seen.torn
            row["backwards"] += seen.backwards
        place.fill("dense")
        for counter in ("version", "eval_taken"):
            litmus.arena.counters.store(counter, 0)
        place.start_line()
        writing.start(0, publish, writer, mode)
        row["visible_s"] = reading.call(_GRACE_S, see, reader)
        writing.take(0, _GRACE_S)
    except Failed as failure:
        row["error"] = str(failure)
        litmus.give_up()
    return row


@dataclass(frozen=True)
class Seen:
    """What a reader saw: values looked at, and how many of them no writer can explain."""

    samples: int
    torn: int
    backwards: int


def make_reader(lane: Lane, reader: Accessor) -> None:
    """In a child: import what the reader needs and read once, before any clock runs."""
    _reader(lane, reader).read()


def read_until(lane: Lane, reader: Accessor, seconds: float, flipping: bool) -> Seen:
    """In a child: line up, then read and judge what was read until the time is over."""
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
    return Seen(samples, torn, backwards)


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
    """In a child: add 1.0, say when, and wait until the reader has seen it; some times over."""
    place = _bench(lane)
    (add,) = _adders(lane, writer, mode, (1.0,))
    counters = place.arena.counters
    place.line_up(2)
    for number in range(1, _PUBLISHED + 1):
        counters.store("start_ns", monotonic_ns())
        add()
        counters.store("version", number)
        place.wait_for("eval_taken", number, "the reader never saw a write")


def see(lane: Lane, reader: Accessor) -> float:
    """In a child: return the longest time in seconds that a published value took to be seen.

    Raises:
        TimeoutError: a value never became visible.
    """
    place, source = _bench(lane), _reader(lane, reader)
    counters = place.arena.counters
    place.line_up(2)
    longest = 0.0
    for number in range(1, _PUBLISHED + 1):
        place.wait_for("version", number, "the writer published nothing")
        deadline = time.perf_counter() + _PATIENCE_S
        while source.read().min() < number:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"a write was not seen within {_PATIENCE_S:.0f} s")
        longest = max(longest, (monotonic_ns() - counters.load("start_ns")) / 1e9)
        counters.store("eval_taken", number)
    return longest


def _bench(lane: Lane) -> Bench:
    return lane.keep("bench", lambda: Bench(lane.arena))


def _reader(lane: Lane, reader: Accessor) -> Reader:
    source: Reader = lane.keep(reader, lambda: reader.make(_bench(lane), lane.slot))
    return source


def _adders(lane: Lane, writer: Accessor, mode: str, values: Sequence[float]) -> list[Pass]:
    source: Writer = lane.keep(writer, lambda: writer.make(_bench(lane), lane.slot))
    return [source.adder("dense", mode, value) for value in values]
