"""Concurrent adds: what is lost, and what never is, in whatever form others add."""

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import UpdateTarget, updates
from mlxhog.optim.gradients import Rows
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared
from tests.optim.small import Slot

LOSSLESS, RACY, CAS = 0, 1, 2
TOTAL_ADDS = 10**8
OFFSET = 7  # the slice starts inside a stripe, off every vector's alignment
TAIL = 123  # and ends in an odd-sized rest


ADDS = {
    "stripe": lambda locks, *at, **how: _native.add(locks, LOSSLESS, *at, **how),
    "racy": lambda locks, *at, **how: _native.add(locks, RACY, *at, **how),
    "cas1": lambda locks, *at, seed: _native.add_cas(*at, 1),
    "cas2": lambda locks, *at, seed: _native.add_cas(*at, 2),
}


def add_ones(segment, barrier, slot, kernel, n, rounds):
    """One worker: `rounds` times, add 1.0 to n floats at OFFSET."""
    at = (segment.locks(slot), segment.floats, OFFSET, np.ones(n, np.float32))
    barrier.wait(TIMEOUT_S)
    for k in range(rounds):
        ADDS[kernel](*at, seed=slot << 32 | k)


def concurrent_adds(kernel, workers, n):
    """The floats after TOTAL_ADDS concurrent adds of 1.0, and what each should be."""
    rounds = max(1, TOTAL_ADDS // (n * workers))
    assert rounds * workers < 2**24, "beyond it float32 cannot count by ones"
    with shared(OFFSET + n) as segment:
        barrier = PROCESSES.Barrier(workers)
        jobs = [(segment, barrier, k + 1, kernel, n, rounds) for k in range(workers)]
        run(add_ones, jobs)
        assert not segment.words.any(), "a lock word is still taken"
        assert not segment.floats[:OFFSET].any(), "an add wrote before its slice"
        return segment.floats[OFFSET:].copy(), rounds * workers


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "n"), [(2, (1 << 20) + TAIL), (4, 16_384 + TAIL)])
@pytest.mark.parametrize("kernel", ["stripe", "cas1", "cas2"])
def test_no_add_is_lost(kernel, workers, n):
    floats, expected = concurrent_adds(kernel, workers, n)
    np.testing.assert_array_equal(floats, expected)


def test_racy_adds_lose_less_than_a_fifth_and_never_invent_one():
    floats, expected = concurrent_adds("racy", 2, (1 << 20) + TAIL)
    assert floats.max() <= expected
    lost = 1.0 - floats.mean(dtype=np.float64) / expected
    print(f"racy adds of two workers: {100 * lost:.3f} % lost")
    assert 0 <= lost < 0.2


PARAMETERS = {
    "dense": Slot("dense", (3000, 2), 77),  # not from a stripe's edge
    "rows": Slot("rows", (150, 40), 8192, "rows", row_word0=16),
}
N = 16 * _native.STRIPE


def drawn(rng, parameter):
    """500 elements of a parameter, ascending."""
    return np.sort(rng.choice(parameter.size, 500, replace=False)).astype(np.int32)


def some_rows(rng, parameter):
    """A third of the rows, each twice."""
    height, width = parameter.shape
    index = np.tile(rng.permutation(height)[: height // 3].astype(np.int32), 2)
    return Rows(index, np.ones((len(index), width), np.float32))


def add_in_every_form(segment, barrier, slot, mode, name, rounds):
    """One worker: 1.0 to random elements, to random rows, and to the whole parameter, in turn."""
    parameter, rng = PARAMETERS[name], np.random.default_rng(slot)
    locks, rows = segment.locks(slot), some_rows(rng, parameter)
    barrier.wait(TIMEOUT_S)
    for k in range(rounds):
        at, how = (
            (segment.floats, parameter),
            {"locks": locks, "mode": mode, "seed": slot << 32 | k},
        )
        updates.add_at(*at, drawn(rng, parameter), np.ones(500, np.float32), **how)
        updates.add(*at, rows, **how)
        updates.add(*at, np.ones(parameter.shape, np.float32), **how)


def wanted_after(workers, parameter, rounds):
    """What `add_in_every_form` adds up to."""
    total = np.zeros(parameter.size, np.float32)
    for slot in range(1, workers + 1):
        rng = np.random.default_rng(slot)
        np.add.at(total.reshape(parameter.shape), some_rows(rng, parameter).index, rounds)
        total += rounds
        for _ in range(rounds):
            total[drawn(rng, parameter)] += 1
    return total


@pytest.mark.slow
@pytest.mark.parametrize("mode", [LOSSLESS, CAS], ids=["lossless", "cas"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_no_add_is_lost_whatever_form_the_other_writers_adds_have(mode, name):
    workers, rounds, parameter = 3, 1500, PARAMETERS[name]
    with shared(N, 16 + 150) as segment:
        barrier = PROCESSES.Barrier(workers)
        run(add_in_every_form, [(segment, barrier, k, mode, name, rounds) for k in (1, 2, 3)])
        assert not segment.words.any(), "a lock word is still taken"
        actual = segment.floats[parameter.offset : parameter.offset + parameter.size]
        np.testing.assert_array_equal(actual, wanted_after(workers, parameter, rounds))
        assert actual.sum() == segment.floats.sum(), "an add reached beyond its parameter"


@pytest.mark.parametrize("mode", [LOSSLESS, RACY, CAS])
def test_the_probe_counts_every_add_of_one_worker(mode):
    with shared(4096) as segment:
        probe, locks = segment.floats[-64:], segment.locks(1)
        where = UpdateTarget(segment.floats, {}, locks, mode, {}, {}, frozenset())
        for _ in range(10):
            where.probe(4096 - 64, 64, scattered=False)
        np.testing.assert_array_equal(probe, 10)
        assert not segment.floats[:-64].any()
