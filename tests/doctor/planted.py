"""Writers, readers and functions that go wrong on purpose, for children to import."""

import os
import sys
import time

import numpy as np

from mlxhog.doctor.litmus import COUNTS, NATIVE, Accessor, shared, values_of

EVERY = 4  # the dropper leaves out one of this number of passes


def dropper(mapped, slot):
    """Adds by native code, but leaves out every fourth pass."""
    native = NATIVE.make(mapped, slot)

    def adder(kernel, mode, value):
        add, passes = native(kernel, mode, value), 0

        def sometimes():
            nonlocal passes
            passes += 1
            if passes % EVERY:
                add()

        return sometimes

    return adder


def tearer(mapped, slot):
    """Leaves half a value where a reader can see it."""
    values = shared(mapped, "dense")

    def tear():
        values[0] = np.float32(0.5)

    return lambda kernel, mode, value: tear


def crasher(mapped, slot):
    """Ends its process, as a GPU may."""
    return lambda kernel, mode, value: lambda: crash(None)


def refuser(mapped, slot):
    """Cannot be made here."""
    raise OSError("no such device")


class TornReader:
    """Sees half of one value."""

    def __init__(self, mapped, slot):
        self._arena = mapped

    def read(self):
        values = values_of(self._arena, "dense")
        values[7] += 0.5
        return values


class OldReader:
    """Sees every second time what was there at the last but one."""

    def __init__(self, mapped, slot):
        self._arena = mapped
        self._seen = []

    def read(self):
        self._seen = [*self._seen, values_of(self._arena, "dense")][-3:]
        return self._seen.pop(0) if len(self._seen) == 3 else self._seen[-1]


class BlindReader:
    """Never sees a write."""

    def __init__(self, mapped, slot):
        self._seen = np.zeros_like(COUNTS["dense"])

    def read(self):
        return self._seen


def planted(name):
    """The kind of writer or reader of that name."""
    return Accessor(name, f"tests.doctor.planted:{name}")


def crash(lane):
    print("the GPU is gone", file=sys.stderr, flush=True)
    os.abort()


def fail(lane):
    raise ValueError("this cannot work")


def hang(lane):
    time.sleep(3600)


def talk(lane):
    print("noise from a framework")
    return os.getpid()


def count_up(lane):
    count = lane.store.get("count", 0) + 1
    lane.store["count"] = count
    return count
