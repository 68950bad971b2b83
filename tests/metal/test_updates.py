"""Adds, steps and reads: the reference's bits, in every mode and by any number of threads."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog import _native
from mlxhog.optim import SGD, AdamW, Momentum, RunContext, updates
from mlxhog.optim.gradients import Rows, global_norm
from mlxhog.optim.rule import StepTrace
from tests.metal.shared import shared
from tests.metal.test_adds import PARAMETERS, N
from tests.optim.small import Slot, target
from tests.pairs import each_of

MODES = [pytest.param(mode, id=name) for name, mode in updates.WRITE_MODES.items()]
DENSE, ROWS = PARAMETERS.values()


def assert_bits(actual, expected):
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def after(start, mode, write):
    """The floats after a write by one worker, which leaves no lock taken."""
    with shared(N, 16 + 150) as segment:
        segment.floats[...] = start
        write(segment.floats, locks=segment.locks(1), mode=mode)
        assert not segment.words.any()
        return segment.floats.copy()


@each_of("mode", MODES)
@given(data=st.data())
def test_adds_of_any_size_and_alignment_give_the_references_bits(mode, data):
    offset = data.draw(st.integers(0, 2100), label="offset")
    size = data.draw(st.integers(0, 4200), label="size")
    shift = data.draw(st.integers(0, 5), label="shift of the delta")
    seed = data.draw(st.integers(0, 2**64 - 1), label="seed")
    rng = np.random.default_rng(0)
    start = rng.standard_normal(N, dtype=np.float32)
    delta = rng.standard_normal(size + shift, dtype=np.float32)[shift:]
    slot, expected = Slot("slot", (size,), offset), start.copy()
    expected[offset : offset + size] += delta
    added = after(start, mode, lambda flat, **how: updates.add(flat, slot, delta, **how, seed=seed))
    assert_bits(added, expected)


@each_of("mode", MODES)
@each_of("slot", [DENSE, ROWS], ids=["dense", "rows"])
@each_of("n", [0, 1, 700])
def test_adds_at_elements_give_the_references_bits(mode, slot, n):
    rng = np.random.default_rng(n)
    index = np.sort(rng.choice(slot.size, n, replace=False)).astype(np.int32)
    values, start = (rng.standard_normal(size, dtype=np.float32) for size in (n, N))
    expected = start.copy()
    expected[slot.offset + index] += values
    added = after(start, mode, lambda flat, **how: updates.add_at(flat, slot, index, values, **how))
    assert_bits(added, expected)


@each_of("mode", MODES)
def test_duplicate_rows_all_add_up(mode):
    values = np.arange(4 * 40, dtype=np.float32).reshape(4, 40)
    delta = Rows(np.array([2, 0, 2, 2], np.int32), values)
    added = after(0, mode, lambda flat, **how: updates.add(flat, ROWS, delta, **how))
    rows = added[ROWS.offset : ROWS.offset + ROWS.size].reshape(ROWS.shape)
    np.testing.assert_array_equal(rows[[0, 2]], [values[1], values[[0, 2, 3]].sum(0)])
    assert np.count_nonzero(rows.any(1)) == 2


@each_of("threads", [1, 2, 7, 10**9])
@each_of("n", [0, 1, 15, 1024, 4099, 300_001])
def test_reads_copy_and_predict_as_the_reference_does_by_any_number_of_threads(n, threads):
    src, last, prev = np.random.default_rng(0).standard_normal((3, n), dtype=np.float32)
    dst, own = np.empty((3, n), np.float32), prev.copy()
    updates.snapshot(dst[0], src, threads=threads)
    _native.read(dst[1], src, own_prev=own, a=0.5, threads=threads)
    _native.read(dst[2], src, last=last, prev=prev, a=4.5, b=1.5, threads=threads)
    a, b, half = np.float32([4.5, 1.5, 0.5])
    assert_bits(dst, np.stack([src, src + half * (src - prev), src + (a * last - b * prev)]))
    assert_bits(own, src)


LARGE = Slot("large", (401, 511), 77)  # 200 stripes, from the middle of one to the middle of one
SMALL = Slot("small", (33,), LARGE.offset + LARGE.size)
SLOTS = {slot.name: slot for slot in (LARGE, SMALL)}
FLOATS = SMALL.offset + SMALL.size + 100
RULES = {
    "sgd": SGD(weight_decay=0.1),
    "momentum": Momentum(weight_decay=0.1),
    "adamw": AdamW(weight_decay=0.1),
    "adamw, shared moments": AdamW(run=RunContext(shared=True)),
}
TO = ("parameters", "parameters, recorded", "pending")


def stepped(rule, mode, to, threads):
    """Every array that three steps write."""
    rng = np.random.default_rng(1)
    with shared(FLOATS) as segment:
        segment.floats[...] = rng.standard_normal(FLOATS, dtype=np.float32)
        last, prev, pending = np.zeros((3, FLOATS), np.float32)
        where = replace(
            target(rule, segment.floats, "large", slots=SLOTS),
            locks=segment.locks(1),
            mode=mode,
            record=StepTrace(last, prev) if to == TO[1] else None,
            pending=pending if to == "pending" else None,
            threads=threads,
        )
        for step in (1, 2, 3):
            grads = {
                name: rng.standard_normal(slot.shape, dtype=np.float32)
                for name, slot in SLOTS.items()
            }
            scale = 1.0 / global_norm(grads, threads)
            rule.step(where, grads, lr=0.01, step=step, seed=step, grad_scale=scale)
        assert not segment.words.any(), "a lock is still taken"
        state = (*where.private.values(), *where.shared.values())
        return [segment.floats.copy(), *state, pending, last, prev]


@each_of("mode", MODES)
def test_shared_moments_of_a_huge_gradient_are_infinite_and_its_step_is_none(mode):
    slot = Slot("w", (4,), 0)
    with shared(4) as segment:
        rule, floats = RULES["adamw, shared moments"], segment.floats
        where = target(rule, floats, "w", slots={"w": slot})
        where = replace(where, locks=segment.locks(1), mode=mode)
        grads = {"w": np.array([1, 3e19, -3e19, 2], np.float32)}
        rule.step(where, grads, lr=0.01, step=1, seed=1, grad_scale=1.0)
        assert np.isfinite(floats).all()
        assert floats[1] == floats[2] == 0 != floats[0]


@pytest.mark.slow
@each_of("to", TO)
@each_of("mode", MODES)
@each_of("name", RULES)
def test_steps_by_several_threads_have_the_bits_of_one_thread(name, mode, to):
    if to == "pending" and RULES[name].shared_segments:
        return  # refused: a pending step moves nothing shared
    one, three = (stepped(RULES[name], mode, to, threads) for threads in (1, 3))
    for actual, expected in zip(three, one, strict=True):
        assert_bits(actual, expected)


@each_of("n", [0, 1, 16, 33, 100_003])
def test_a_sum_of_squares_is_taken_in_float64_and_finite_only_if_every_element_is(n):
    g = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    exact = float(np.sum(np.square(g, dtype=np.float64)))
    assert _native.sumsq(g) == pytest.approx(exact, rel=1e-14)
    g = np.full(n, 3e38, np.float32)  # its square overflows float32, not float64
    assert np.isfinite(_native.sumsq(g))
    for at in {0, n // 2, n - 1} if n else ():
        for bad in (np.nan, np.inf, -np.inf):
            g[at] = bad
            assert not np.isfinite(_native.sumsq(g))
        g[at] = 1.0


def test_a_norm_does_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    sizes = (10, 3 << 18, (1 << 18) + 7, 0, 600_000)
    grads = {str(k): rng.standard_normal(n, dtype=np.float32) for k, n in enumerate(sizes)}
    grads["rows"] = Rows(np.array([1, 0, 1], np.int32), np.ones((3, 4), np.float32))
    norms = {global_norm(grads, threads) for threads in (1, 2, 3, 8, 2, 1)}
    assert len(norms) == 1
    dense = np.concatenate([grads[str(k)] for k in range(len(sizes))]).astype(np.float64)
    assert norms.pop() == pytest.approx(math.sqrt(float((dense**2).sum()) + 20.0), rel=1e-13)
    grads["1"][-1] = np.inf
    assert not math.isfinite(global_norm(grads, 3))
    grads["1"] = grads["1"][: 1 << 18]  # a mebibyte: the sum as before, so recorded hashes stay
    small = {name: grads[name] for name in "01"}
    assert global_norm(small, 2) == math.sqrt(sum(_native.sumsq(grad) for grad in small.values()))
