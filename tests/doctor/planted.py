"""Writers, readers and functions that go wrong on purpose, for children to import."""

import itertools
import os
import sys
import time

import numpy as np

from mlxhog.doctor.litmus import COUNTS, NATIVE, shared, values_of

EVERY = 4  # the dropper leaves out one of this number of passes


def dropper(mapped, slot, kernel, mode):
    """Adds by native code, but leaves out every fourth pass: the first after one to warm up."""
    add, passes = NATIVE.make(mapped, slot, kernel, mode), itertools.count(EVERY - 1)
    return lambda: next(passes) % EVERY and add()


def tearer(mapped, slot, kernel, mode):
    """Leaves half a value where a reader can see it."""
    values = shared(mapped, "dense")
    return lambda: values.__setitem__(0, np.float32(0.5))


def crasher(mapped, slot, kernel, mode):
    """Ends its process, as a GPU may."""
    return lambda: crash(None)


def refuser(mapped, slot, kernel, mode):
    """Cannot be made here."""
    raise OSError("no such device")


def torn_reader(mapped):
    """Sees half of another number in one value."""

    def read():
        values = values_of(mapped, "dense")
        values[7] += 0.5
        return values

    return read


def old_reader(mapped):
    """Adds, and sees every second time what was there at the last but one."""
    seen, add = [np.zeros_like(COUNTS["dense"])] * 2, NATIVE.make(mapped, 1, "dense", "lossless")

    def read():
        add()
        seen.append(values_of(mapped, "dense"))
        return seen[-1] if len(seen) % 2 else seen[-3]

    return read


def blind_reader(mapped):
    """Never sees a write."""
    return lambda: np.zeros_like(COUNTS["dense"])


def crash(lane):
    print("the GPU is gone", file=sys.stderr, flush=True)
    os.abort()


def fail(lane):
    raise ValueError("this cannot work")


def lack_memory(lane):
    raise MemoryError


def lack_memory_in_native_code(lane):
    print("  what():  std::bad_alloc\nFatal Python error: Aborted", file=sys.stderr, flush=True)
    os.abort()


def hang(lane):
    time.sleep(3600)


def talk(lane):
    print("noise from a framework")
    return os.getpid()


def count_up(lane):
    count = lane.store.get("count", 0) + 1
    lane.store["count"] = count
    return count
