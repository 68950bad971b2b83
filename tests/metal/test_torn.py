"""A reader never sees a float that nobody wrote."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.base.processes import follow_parent
from tests.metal.shared import PROCESSES, TIMEOUT_S, shared, spawned

LOSSLESS, RACY, CAS = 0, 1, 2
N = 40 * _native.STRIPE + 13
READS = 10**8
WRITE = (1.0, 1.0, 0.0, 0.0)

# Copies store the two patterns themselves. One exact addition leads from the first to the third
# and back, so arithmetic kernels alternate between those; all four bytes differ as well.
ONE, PI, NEAR_PI = (
    np.uint32(bits).view(np.float32) for bits in (0x3F80_0000, 0xC049_0FDB, 0xC049_0FDA)
)
STEP = np.float32(NEAR_PI - ONE)


def _kernels(segment, slot, half):
    """What one writer does in its half of the floats in its k-th round, by kernel."""
    locks, flat, offset = segment.locks(slot), segment.floats, half.start
    n = half.stop - half.start
    private = [np.full(n, value, np.float32) for value in (PI, ONE)]
    deltas = [np.full(n, sign * STEP, np.float32) for sign in (1, -1)]
    grads = [-delta for delta in deltas]
    m = np.zeros(n, np.float32)

    def add(mode, k):
        _native.add(locks, mode, flat, offset, deltas[k % 2], seed=k)

    def momentum(mode, k):
        of = ("momentum", (1.0, 0.0, 0.0, 0.0), WRITE)
        _native.step(*of, locks, mode, flat, offset, grads[k % 2], [m])

    return {
        "copy": lambda k: _native.read(flat[half], private[k % 2]),
        "add lossless": lambda k: add(LOSSLESS, k),
        "add racy": lambda k: add(RACY, k),
        "add cas": lambda k: add(CAS, k),
        "cas of 1": lambda k: _native.add_cas(flat, offset, deltas[k % 2], 1),
        "cas of 2": lambda k: _native.add_cas(flat, offset, deltas[k % 2], 2),
        "sgd": lambda k: _native.step(
            "gradient", (), WRITE, locks, LOSSLESS, flat, offset, grads[k % 2]
        ),
        "momentum": lambda k: momentum(LOSSLESS, k),
        "momentum racy": lambda k: momentum(RACY, k),
    }


KERNELS = (
    "copy", "add lossless", "add racy", "add cas", "cas of 1", "cas of 2", "sgd", "momentum",
    "momentum racy",
)  # fmt: skip


def write_for_ever(segment, barrier, slot, kernel):
    follow_parent()  # it must not outlive a test that is killed
    half = slice(0, N // 2) if slot == 1 else slice(N // 2, N)
    write = _kernels(segment, slot, half)[kernel]
    write(0)
    barrier.wait(TIMEOUT_S)
    k = 1
    while True:
        write(k)
        k += 1


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
            for _ in range(READS // N):
                _native.read(copied, segment.floats)
                bits = copied.view(np.uint32)
                known = (bits == written[0]) | (bits == written[1])
                assert known.all(), f"torn: {[hex(x) for x in np.unique(bits[~known])]}"
                changes += bool((bits == written[0]).any()) and bool((bits == written[1]).any())
        assert changes > 0, "the reader never met a writer at work"
