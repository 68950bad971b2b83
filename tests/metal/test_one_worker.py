"""With one worker every write mode adds the same bits, and reads are what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog import _native
from mlxhog.optim import updates
from tests.metal.shared import shared
from tests.optim.small import Slot
from tests.pairs import each_of

MODES = [pytest.param(mode, id=name) for name, mode in updates.WRITE_MODES.items()]
N = 4 * _native.STRIPE + 200


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
    _native.read(dst, src, own_prev=prev, a=0.5)
    np.testing.assert_array_equal(dst, expected)
    np.testing.assert_array_equal(prev, src)
    last = rng.standard_normal(n, dtype=np.float32)
    _native.read(dst, src, last=last, prev=prev, a=4.5, b=1.5)
    expected = src + (np.float32(4.5) * last - np.float32(1.5) * prev)
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
