"""Rows, sums and the global norm of gradients mean what their dense counterparts mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ShapeError
from mlxhog.optim import gradients
from mlxhog.optim.gradients import GradientSum, Rows


def dense(rows, n_rows):
    """The same gradient as a dense array."""
    whole = np.zeros((n_rows, rows.values.shape[1]), np.float32)
    np.add.at(whole, rows.index, rows.values)
    return whole


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_coalesced_rows_ascend_and_mean_the_same(index, width):
    values = np.random.default_rng(0).standard_normal((len(index), width), dtype=np.float32)
    rows = Rows(np.array(index, np.int32), values)
    once = rows.coalesced()
    assert once.index.dtype == np.int32
    np.testing.assert_array_equal(once.index, np.unique(index))
    np.testing.assert_array_equal(dense(once, 10), dense(rows, 10))


@pytest.mark.parametrize(("index", "values"), [((3,), (2, 4)), ((2, 1), (2, 4)), ((2,), (2,))])
def test_index_and_values_must_belong_together(index, values):
    with pytest.raises(ShapeError, match="wanted"):
        Rows(np.zeros(index, np.int32), np.zeros(values, np.float32))


def test_a_gradient_sum_copies_because_backends_reuse_their_arrays():
    reused = {"w": np.full(3, 1.0, np.float32)}
    rows = Rows(np.array([2, 0], np.int32), np.ones((2, 2), np.float32))
    total = GradientSum()
    total.add({**reused, "e": rows}, 0.5)
    reused["w"][:] = 4.0
    rows.index[:] = 3, 0
    rows.values[:] = 3.0
    total.add({**reused, "e": rows}, 0.25)
    grads = total.grads()
    np.testing.assert_array_equal(grads["w"], 1.5)
    summed = grads["e"]
    assert isinstance(summed, Rows)
    np.testing.assert_array_equal(summed.index, [0, 2, 3])
    np.testing.assert_array_equal(summed.values, [[1.25, 1.25], [0.5, 0.5], [0.75, 0.75]])


@pytest.mark.parametrize(
    ("norm", "max_norm", "factor"),
    [(0.1, 0.5, 1.0), (2.0, 0.5, 0.25), (7.0, 0.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_the_factor_brings_a_long_gradient_down_and_leaves_a_short_one(norm, max_norm, factor):
    assert gradients.clip_factor(norm, max_norm) == pytest.approx(factor, rel=1e-6)
