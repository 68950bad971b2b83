"""Writers, readers and functions that go wrong on purpose, for children to import."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from mlxhog.arena.child import Lane
from mlxhog.doctor.accessors import COUNTS, Accessor, Bench, Pass
from mlxhog.optim.updates import Float32

NATIVE = Accessor("native", "mlxhog.doctor.accessors:native_writer")
EVERY = 4  # the dropper leaves out one of this number of passes


class Dropper:
    """Adds by native code, but only says so every fourth time."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._native = NATIVE.make(bench, slot)

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        add = self._native.adder(kernel, mode, value)
        passes = 0

        def sometimes() -> None:
            nonlocal passes
            passes += 1
            if passes % EVERY:
                add()

        return sometimes


class Tearer:
    """Leaves half a value where a reader can see it."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._shared = bench.shared("dense")

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        def tear() -> None:
            self._shared[0] = np.float32(0.5)

        return tear


class Crasher:
    """Ends its process, as a GPU may."""

    def __init__(self, bench: Bench, slot: int) -> None:
        pass

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        return lambda: crash(None)


class Refuser:
    """Cannot be made here."""

    def __init__(self, bench: Bench, slot: int) -> None:
        raise OSError("no such device")


class TornReader:
    """Sees half of one value."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench

    def read(self) -> Float32:
        values = self._bench.values("dense")
        values[7] += 0.5
        return values


class OldReader:
    """Sees every second time what was there at the last but one."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench
        self._seen: list[Float32] = []

    def read(self) -> Float32:
        self._seen = [*self._seen, self._bench.values("dense")][-3:]
        return self._seen.pop(0) if len(self._seen) == 3 else self._seen[-1]


class BlindReader:
    """Never sees a write."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._seen = np.zeros_like(COUNTS["dense"])

    def read(self) -> Float32:
        return self._seen


def planted(name: str) -> Accessor:
    """The kind of writer or reader of that name."""
    return Accessor(name, f"tests.doctor.planted:{name}")


def crash(lane: Lane | None) -> None:
    print("the GPU is gone", file=sys.stderr, flush=True)
    os.abort()


def fail(lane: Lane) -> None:
    raise ValueError("this cannot work")


def hang(lane: Lane) -> None:
    time.sleep(3600)


def talk(lane: Lane) -> int:
    print("noise from a framework")
    return os.getpid()


def count_up(lane: Lane) -> int:
    count: int = lane.store.get("count", 0) + 1
    lane.store["count"] = count
    return count
