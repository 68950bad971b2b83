"""With one worker every write mode gives the bits of the NumPy reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog import _native
from mlxhog.optim import SGD, AdamW, Momentum, Target, updates
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import StepTrace
from tests.metal.shared import shared
from tests.optim.small import Slot
from tests.pairs import each_of

MODES = [pytest.param(mode, id=name) for name, mode in updates.WRITE_MODES.items()]
WIDTH = 40


DENSE = Slot("dense", (31, WIDTH), 5)
ROWS = Slot("rows", (29, WIDTH), 1300, "rows", row_word0=4)
VECTOR = Slot("vector", (1777,), 2500)
SLOTS = {slot.name: slot for slot in (DENSE, ROWS, VECTOR)}
N = 4 * _native.STRIPE + 200
N_WORDS = 5 + 29


def gradients(rng):
    """A gradient of every form for every kind of parameter."""

    def dense(slot):
        return rng.standard_normal(slot.shape, dtype=np.float32)

    def rows(slot, *, duplicates):
        index = rng.choice(slot.shape[0], 17, replace=duplicates).astype(np.int32)
        return Rows(index, rng.standard_normal((17, WIDTH), dtype=np.float32))

    return {
        "all dense": {slot.name: dense(slot) for slot in SLOTS.values()},
        "rows": {"rows": rows(ROWS, duplicates=True), "vector": dense(VECTOR)},
        "rows of a dense parameter": {"dense": rows(DENSE, duplicates=True)},
    }


OPTIMIZERS = {
    "sgd": lambda native: SGD(weight_decay=0.1, native=native),
    "momentum": lambda native: Momentum(weight_decay=0.1, native=native),
    "nesterov": lambda native: Momentum(momentum=0.7, nesterov=True, native=native),
    "adamw": lambda native: AdamW(weight_decay=0.1, native=native),
    "adamw, shared moments": lambda native: AdamW(shared=True, native=native),
}


def trained(
    optimizer, mode, gradients, slots=SLOTS, n=N, n_words=N_WORDS, *, decay=("dense", "rows"),
    recorded=False, pending=False, threads=1, scale=lambda grads: 0.7,
):  # fmt: skip
    """Every array that four steps write: parameters, state, record and pending steps."""
    rng = np.random.default_rng(1)
    with shared(n, n_words) as segment:
        segment.floats[...] = rng.standard_normal(n, dtype=np.float32)
        private = {name: np.zeros(n, np.float32) for name in optimizer.state_segments}
        both = {name: np.zeros(n, np.float32) for name in optimizer.shared_segments}
        last, prev, waiting = np.zeros((3, n), np.float32)
        target = Target(
            flat=segment.floats,
            slots=slots,
            locks=segment.locks(1) if mode == 0 else None,
            mode=mode,
            private=private,
            shared=both,
            decay=frozenset(decay),
            record=StepTrace(last, prev) if recorded else None,
            pending=waiting if pending else None,
            threads=threads,
        )
        for step in range(1, 5):
            grads = gradients(rng)
            how = {"lr": 0.01, "step": step, "seed": step, "grad_scale": scale(grads)}
            optimizer.step(target, grads, **how)
        assert not segment.words.any(), "a lock is still taken"
        return [segment.floats.copy(), *private.values(), *both.values(), waiting, last, prev]


def of(form):
    return lambda rng: gradients(rng)[form]


@each_of("mode", MODES)
@each_of("form", ["all dense", "rows", "rows of a dense parameter"])
@each_of("name", OPTIMIZERS)
def test_every_mode_of_every_optimizer_gives_the_references_bits(name, form, mode):
    make = OPTIMIZERS[name]
    for actual, expected in zip(
        trained(make(True), mode, of(form)), trained(make(False), mode, of(form)), strict=True
    ):
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@each_of("mode", MODES)
@each_of("name", ["sgd", "momentum", "adamw, shared moments"])
def test_recorded_steps_are_those_of_dense_parameters_in_every_mode(name, mode):
    make = OPTIMIZERS[name]
    native, reference, plain = (
        trained(make(native), mode, of("all dense"), recorded=recorded)
        for native, recorded in ((True, True), (False, True), (True, False))
    )
    for actual, expected in zip(native, reference, strict=True):
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))
    for actual, expected in zip(native[:-2], plain[:-2], strict=True):
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))
    rows = slice(ROWS.offset, ROWS.offset + ROWS.size)
    for steps in native[-2:]:
        assert not steps[rows].any()
        assert np.count_nonzero(steps) > 0.9 * (DENSE.size + VECTOR.size)


@each_of("mode", MODES)
@given(data=st.data())
def test_adds_of_any_size_and_alignment_give_the_references_bits(mode, data):
    offset = data.draw(st.integers(0, 2100), label="offset")
    size = data.draw(st.integers(0, N - offset), label="size")
    shift = data.draw(st.integers(0, 5), label="shift of the delta")
    seed = data.draw(st.integers(0, 2**64 - 1), label="seed")
    rng = np.random.default_rng(0)
    start = rng.standard_normal(N, dtype=np.float32)
    delta = rng.standard_normal(size + shift, dtype=np.float32)[shift:]
    expected = start.copy()
    expected[offset : offset + size] += delta
    with shared(N) as segment:
        segment.floats[...] = start
        slot = Slot("slot", (size,), offset)
        updates.add(segment.floats, slot, delta, locks=segment.locks(1), mode=mode, seed=seed)
        np.testing.assert_array_equal(segment.floats, expected)
        assert not segment.words.any()


@each_of("n", [1, 15, 1024, 4099])
def test_snapshots_copy_and_predict_as_the_reference_does(n):
    rng = np.random.default_rng(0)
    src, prev = rng.standard_normal((2, n), dtype=np.float32)
    dst, coef = np.empty(n, np.float32), np.float32(0.5)
    expected = src + coef * (src - prev)
    updates.snapshot(dst, src)
    np.testing.assert_array_equal(dst, src)
    updates.snapshot_predict(dst, src, prev, 0.5)
    np.testing.assert_array_equal(dst, expected)
    np.testing.assert_array_equal(prev, src)
    last = rng.standard_normal(n, dtype=np.float32)
    updates.snapshot_ahead(dst, src, last, prev, horizon=3.0, trend=0.5)
    expected = src + (np.float32(3.0 * 1.5) * last - np.float32(3.0 * 0.5) * prev)
    np.testing.assert_array_equal(dst, expected)
    np.testing.assert_allclose(dst, src + 3 * (last + 0.5 * (last - prev)), rtol=1e-5, atol=1e-5)


@each_of("n", [0, 1, 16, 33, 100_003])
def test_sum_of_squares_is_a_float64_sum(n):
    g = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    assert _native.sumsq(g) == pytest.approx(
        float(np.sum(np.square(g, dtype=np.float64))), rel=1e-14
    )


@each_of("bad", [np.nan, np.inf, -np.inf])
@each_of("at", [0, 17, 99])
def test_sum_of_squares_is_finite_only_if_every_element_is(bad, at):
    g = np.full(100, 3e38, np.float32)  # its square overflows float32, not float64
    assert np.isfinite(_native.sumsq(g))
    g[at] = bad
    assert not np.isfinite(_native.sumsq(g))
