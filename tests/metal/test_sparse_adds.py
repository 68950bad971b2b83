"""Adds at single elements: the bits of the reference, no add lost, also beside whole-array adds."""

from threading import BrokenBarrierError

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import updates
from tests.metal.shared import PROCESSES, TIMEOUT_S, run, shared
from tests.metal.test_one_worker import MODES
from tests.optim.small import Slot
from tests.pairs import each_of

LOSSLESS, RACY, CAS = 0, 1, 2
WIDTH = 40
DENSE = Slot("dense", (3000, 2), 77)  # 6000 floats, not from a stripe's edge
ROWS = Slot("rows", (150, WIDTH), 8192, "rows", row_word0=16)
N = 16 * _native.STRIPE
N_WORDS = 16 + 150


def some(rng, slot, n):
    """`n` elements of a parameter, ascending."""
    return np.sort(rng.choice(slot.size, n, replace=False)).astype(np.int32)


@each_of("mode", MODES)
@each_of("slot", [DENSE, ROWS], ids=["dense", "rows"])
@each_of("n", [0, 1, 700])
def test_one_worker_gives_the_bits_of_the_reference(mode, slot, n):
    rng = np.random.default_rng(n)
    index, values = some(rng, slot, n), rng.standard_normal(n, dtype=np.float32)
    before = rng.standard_normal(N, dtype=np.float32)
    expected = before.copy()
    expected[slot.offset + index] += values
    with shared(N, N_WORDS) as segment:
        segment.floats[...] = before
        updates.add_at(
            segment.floats, slot, index, values, locks=segment.locks(1), mode=mode, seed=5
        )
        assert not segment.words.any()
        np.testing.assert_array_equal(segment.floats.view(np.uint32), expected.view(np.uint32))


@each_of(
    ("index", "values", "what"),
    [
        ([3, 2], [1, 1], "ascending"),
        ([3, 3], [1, 1], "ascending"),
        ([-1], [1], "outside the 6000"),
        ([6000], [1], "outside the 6000"),
        ([1, 2], [1], "2 places for 1 values"),
    ],
)
def test_elements_that_are_not_ascending_inside_the_parameter_are_refused_unwritten(
    index, values, what
):
    flat = np.zeros(N, np.float32)
    arguments = (np.array(index, np.int32), np.array(values, np.float32))
    with pytest.raises(ValueError, match=what):
        updates.add_at(flat, DENSE, *arguments, locks=None, mode=RACY)
    assert not flat.any()


def test_lossless_adds_without_locks_or_with_too_few_are_refused():
    one = (np.zeros(1, np.int32), np.ones(1, np.float32))
    with shared(N, 16) as segment, pytest.raises(ValueError, match="lock words"):
        updates.add_at(segment.floats, ROWS, *one, locks=segment.locks(1), mode=LOSSLESS)
    with pytest.raises(ValueError, match="locks is None"):
        updates.add_at(np.zeros(N, np.float32), ROWS, *one, locks=None, mode=LOSSLESS)


def add_in_every_form(segment, barrier, slot, mode, name, rounds):
    """One worker: 1.0 to random elements, to random rows, and to the whole parameter, in turn."""
    locks, rng = segment.locks(slot), np.random.default_rng(slot)
    parameter = DENSE if name == "dense" else ROWS
    rows = ones_for(rng.permutation(parameter.shape[0])[: parameter.shape[0] // 3], parameter)
    try:
        barrier.wait(TIMEOUT_S)
    except BrokenBarrierError as error:
        raise SystemExit("a worker never started") from error
    for k in range(rounds):
        index = some(rng, parameter, 500)
        how = {"locks": locks, "mode": mode, "seed": slot << 32 | k}
        updates.add_at(segment.floats, parameter, index, np.ones(500, np.float32), **how)
        updates.add(segment.floats, parameter, rows, **how)
        updates.add(segment.floats, parameter, np.ones(parameter.shape, np.float32), **how)


def ones_for(index, parameter):
    """Ones for some rows."""
    values = np.ones((len(index), parameter.shape[1]), np.float32)
    return updates.Rows(index.astype(np.int32), values)


def wanted_after(workers, parameter, rounds):
    """What `add_in_every_form` adds up to."""
    total = np.zeros(parameter.size, np.float32)
    for slot in range(1, workers + 1):
        rng = np.random.default_rng(slot)
        rows = rng.permutation(parameter.shape[0])[: parameter.shape[0] // 3]
        total.reshape(parameter.shape)[rows] += rounds
        total += rounds
        for _ in range(rounds):
            total[some(rng, parameter, 500)] += 1
    return total


@pytest.mark.slow
@pytest.mark.parametrize("mode", [LOSSLESS, CAS], ids=["lossless", "cas"])
@pytest.mark.parametrize("name", ["dense", "rows"])
def test_no_add_is_lost_whatever_form_the_other_writers_adds_have(mode, name):
    workers, rounds = 3, 1500
    parameter = DENSE if name == "dense" else ROWS
    with shared(N, N_WORDS) as segment:
        barrier = PROCESSES.Barrier(workers)
        jobs = [(segment, barrier, k + 1, mode, name, rounds) for k in range(workers)]
        run(add_in_every_form, jobs)
        assert not segment.words.any(), "a lock word is still taken"
        actual = segment.floats[parameter.offset : parameter.offset + parameter.size]
        np.testing.assert_array_equal(actual, wanted_after(workers, parameter, rounds))
        assert actual.sum() == segment.floats.sum(), "an add reached beyond its parameter"
