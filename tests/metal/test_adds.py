"""Concurrent adds: what is lost, and what never is."""

from threading import BrokenBarrierError

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.arena.arena import lost_update_rate
from mlxhog.errors import ShapeError
from mlxhog.optim import Target, updates
from mlxhog.optim.gradients import Rows
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared
from tests.optim.small import Slot

LOSSLESS, RACY, CAS = 0, 1, 2
TOTAL_ADDS = 10**8
OFFSET = 7  # the slice starts inside a stripe, off every vector's alignment
TAIL = 123  # and ends in an odd-sized rest
WIDTH = 64
SGD = ("gradient", (), (1.0, 1.0, 0.0, 0.0))
BY_ROWS = ("rows", "table")


def add_ones(segment, barrier, slot, kernel, n, rounds):
    """One worker: `rounds` times, add 1.0 to n floats at OFFSET."""
    locks, flat = segment.locks(slot), segment.floats
    ones = np.ones(n, np.float32)
    rows = np.random.default_rng(slot).permutation(n // WIDTH).astype(np.int32)
    try:
        barrier.wait(TIMEOUT_S)
    except BrokenBarrierError as error:
        raise SystemExit("a worker never started") from error
    for k in range(rounds):
        seed = slot << 32 | k
        if kernel == "rows":
            values = ones[: len(rows) * WIDTH]
            _native.add(locks, LOSSLESS, flat, OFFSET, values, (rows, WIDTH, 0, n), seed)
        elif kernel == "table":
            place, grad = (np.sort(rows), WIDTH, 0, n), -ones[: len(rows) * WIDTH]
            _native.step(*SGD, locks, LOSSLESS, flat, OFFSET, grad, rows=place, seed=seed)
        elif kernel in ("stripe", "racy"):
            mode = RACY if kernel == "racy" else LOSSLESS
            _native.add(locks, mode, flat, OFFSET, ones, seed=seed)
        else:
            _native.add_cas(flat, OFFSET, ones, int(kernel.removeprefix("cas")))


def concurrent_adds(kernel, workers, n):
    """The floats after TOTAL_ADDS concurrent adds of 1.0, and what each should be."""
    rounds = max(1, TOTAL_ADDS // (n * workers))
    assert rounds * workers < 2**24, "beyond it float32 cannot count by ones"
    n_words = n // WIDTH if kernel in BY_ROWS else 0
    with shared(OFFSET + n, n_words) as segment:
        barrier = PROCESSES.Barrier(workers)
        jobs = [(segment, barrier, k + 1, kernel, n, rounds) for k in range(workers)]
        run(add_ones, jobs)
        assert not segment.words.any(), "a lock word is still taken"
        assert not segment.floats[:OFFSET].any(), "an add wrote before its slice"
        return segment.floats[OFFSET:].copy(), rounds * workers


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "n"), [(2, (1 << 20) + TAIL), (4, 16_384 + TAIL)])
@pytest.mark.parametrize("kernel", ["stripe", *BY_ROWS, "cas1", "cas2", "cas4"])
def test_no_add_is_lost(kernel, workers, n):
    if kernel == "cas4" and _native.widest_cas() < 4:
        pytest.skip("this CPU has no compare-and-swap of four floats")
    if kernel in BY_ROWS:
        n -= n % WIDTH
    floats, expected = concurrent_adds(kernel, workers, n)
    np.testing.assert_array_equal(floats, expected)


def test_racy_adds_lose_less_than_a_fifth_and_never_invent_one():
    floats, expected = concurrent_adds("racy", 2, (1 << 20) + TAIL)
    assert floats.max() <= expected
    lost = lost_update_rate(floats, expected)
    print(f"racy adds of two workers: {100 * lost:.3f} % lost")
    assert 0 <= lost < 0.2


ROWS = Slot("rows", (4, 8), 0, kind="rows", row_word0=0)


def test_duplicate_rows_all_add_up():
    with shared(4 * 8, n_words=4) as segment:
        values = np.arange(4 * 8, dtype=np.float32).reshape(4, 8)
        delta = Rows(np.array([2, 0, 2, 2], np.int32), values)
        how = {"locks": segment.locks(1), "mode": LOSSLESS}
        updates.add(segment.floats, ROWS, delta, **how)
        total = np.stack(
            [values[1], 0 * values[1], values[0] + values[2] + values[3], 0 * values[1]]
        )
        np.testing.assert_array_equal(segment.floats.reshape(4, 8), total)


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_outside_the_parameter_is_refused_unwritten(row):
    flat = np.zeros(4 * 8, np.float32)
    delta = Rows(np.array([0, row], np.int32), np.ones((2, 8), np.float32))
    with pytest.raises(ShapeError, match="the parameter has rows 0 to 3"):
        updates.add(flat, ROWS, delta, locks=None, mode=RACY)
    assert not flat.any()


@pytest.mark.parametrize("mode", [LOSSLESS, RACY, CAS])
def test_the_probe_counts_every_add_of_one_worker(mode):
    with shared(4096) as segment:
        probe, locks = segment.floats[-64:], segment.locks(1)
        where = Target(segment.floats, {}, locks, mode, {}, {}, frozenset())
        for _ in range(10):
            where.probe(4096 - 64, 64, scattered=False)
        np.testing.assert_array_equal(probe, 10)
        assert not segment.floats[:-64].any()
        assert lost_update_rate(probe, 10) == 0
        assert lost_update_rate(probe, 20) == 0.5


SLOTS = {
    "dense": Slot("dense", (512, WIDTH), OFFSET),
    # the words of 33 stripes come before
    "rows": Slot("rows", (512, WIDTH), OFFSET, "rows", row_word0=40),
}


def add_one_form(segment, barrier, worker, kind, rounds):
    """Worker 1 adds a dense gradient of ones, the other the same as rows, twice each."""
    slot = SLOTS[kind]
    locks = segment.locks(worker)
    delta = np.ones(slot.shape, np.float32)
    if worker != 1:
        index = np.tile(np.random.default_rng(0).permutation(512).astype(np.int32), 2)
        delta = updates.Rows(index, np.ones((len(index), WIDTH), np.float32))
    barrier.wait(TIMEOUT_S)
    for k in range(rounds):
        seed = worker << 32 | k
        updates.add(segment.floats, slot, delta, locks=locks, mode=LOSSLESS, seed=seed)


@pytest.mark.parametrize("kind", SLOTS)
def test_dense_and_row_gradients_of_one_parameter_exclude_each_other(kind):
    rounds = 1000
    with shared(OFFSET + SLOTS[kind].size, n_words=40 + 512) as segment:
        barrier = PROCESSES.Barrier(2)
        run(add_one_form, [(segment, barrier, worker, kind, rounds) for worker in (1, 2)])
        np.testing.assert_array_equal(segment.floats[OFFSET:], 3 * rounds)
        assert not segment.words.any()
