"""A reader never sees a float that nobody wrote."""

import itertools
import time

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.base.processes import follow_parent
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.shared import PROCESSES, TIMEOUT_S, shared, spawned

N = 40 * _native.STRIPE + 13
READS = 10**8
WRITE = (1.0, 1.0, 0.0, 0.0)

# Copies store the two patterns themselves. One exact addition leads from the first to the third
# and back, so arithmetic kernels alternate between those; all four bytes differ as well.
ONE, PI, NEAR_PI = (
    np.uint32(bits).view(np.float32) for bits in (0x3F80_0000, 0xC049_0FDB, 0xC049_0FDA)
)
STEP = np.float32(NEAR_PI - ONE)


KERNELS = {
    "copy": lambda x, k: _native.read(x.half, x.values[k % 2]),
    **{
        f"add {name}": lambda x, k, mode=mode: _native.add(
            x.locks, mode, *x.at, x.deltas[k % 2], seed=k
        )
        for name, mode in WRITE_MODES.items()
    },
    **{f"cas of {n}": lambda x, k, n=n: _native.add_cas(*x.at, x.deltas[k % 2], n) for n in (1, 2)},
    "sgd": lambda x, k: _native.step("gradient", (), WRITE, x.locks, 0, *x.at, -x.deltas[k % 2]),
    **{
        f"momentum {name}": lambda x, k, mode=WRITE_MODES[name]: _native.step(
            "momentum", (1.0, 0.0, 0.0, 0.0), WRITE, x.locks, mode, *x.at, -x.deltas[k % 2], [x.m]
        )
        for name in ("lossless", "racy")
    },
}
"""What one writer does in its half of the floats in its k-th round."""


class Half:
    """A writer's half of the floats, and what it writes there in turns."""

    def __init__(self, segment, slot):
        half = slice(0, N // 2) if slot == 1 else slice(N // 2, N)
        n = half.stop - half.start
        self.locks, self.half = segment.locks(slot), segment.floats[half]
        self.at = (segment.floats, half.start)
        self.values = [np.full(n, value, np.float32) for value in (PI, ONE)]
        self.deltas = [np.full(n, sign * STEP, np.float32) for sign in (1, -1)]
        self.m = np.zeros(n, np.float32)


def write_for_ever(segment, barrier, slot, kernel):
    follow_parent()  # it must not outlive a test that is killed
    half, write = Half(segment, slot), KERNELS[kernel]
    write(half, 0)
    barrier.wait(TIMEOUT_S)
    for k in itertools.count(1):
        write(half, k)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_readers_see_only_what_was_written(kernel):
    with shared(N) as segment:
        segment.floats[...] = ONE
        written = [x.view(np.uint32) for x in (ONE, PI if kernel == "copy" else NEAR_PI)]
        barrier = PROCESSES.Barrier(3)
        jobs = [(segment, barrier, slot, kernel) for slot in (1, 2)]
        copied, changes = np.empty(N, np.float32), 0
        with spawned(write_for_ever, jobs):
            barrier.wait(TIMEOUT_S)
            deadline = time.monotonic() + TIMEOUT_S
            for read in itertools.count():
                if read >= READS // N and (changes or time.monotonic() > deadline):
                    break  # on a busy machine both writers may wait for as long as all reads take
                _native.read(copied, segment.floats)
                bits = copied.view(np.uint32)
                known = (bits == written[0]) | (bits == written[1])
                assert known.all(), f"torn: {[hex(x) for x in np.unique(bits[~known])]}"
                changes += bool((bits == written[0]).any()) and bool((bits == written[1]).any())
        assert changes > 0, "the reader never met a writer at work"
