"""What a selection takes out of a pending step, natively as in the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlxhog.config.rules import Selection
from mlxhog.optim.sparsified import take
from tests.optim.small import EMBEDDING, MATRIX, N, initial, parameter

SELECTIONS = [Selection("topk", f) for f in (1e-9, 0.1, 0.5, 1.0)]
SELECTIONS += [Selection("threshold", f) for f in (0.5, 1.0, 3.0)]
LR = 1.5


def both(selection, pending, rows, keep):
    """What the native and the NumPy form take of the embedding, and what they leave."""
    results = []
    for native in (True, False):
        left = pending.copy()
        taken = take(selection, left, EMBEDDING, rows, lr=LR, keep=keep, native=native)
        results.append((*taken, left))
    return results


# Few different values, so that there are ties; both zeros, and what AdamW could never give.
values = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.75, 1.5, -1.5, 4.5, 1e-40, -3e38, np.inf])


@given(
    pending=arrays.arrays(np.float32, N, elements=st.one_of(values, st.floats(width=32))),
    rows=st.none() | st.sets(st.integers(0, 10)),
    selection=st.sampled_from(SELECTIONS),
    keep=st.booleans(),
)
def test_the_native_form_takes_what_the_reference_takes(pending, rows, selection, keep):
    pending = np.nan_to_num(pending, nan=7.0, posinf=np.inf, neginf=-np.inf)
    index = None if rows is None else np.array(sorted(rows), np.int32)
    native, reference = both(selection, pending, index, keep)
    for a, b in zip(native, reference, strict=True):
        np.testing.assert_array_equal(a, b)


def test_topk_takes_the_largest_and_among_equals_the_first():
    pending = initial()
    parameter(pending, MATRIX)[...] = 1.0
    parameter(pending, MATRIX)[2, 3] = -5.0
    index, taken = take(Selection("topk", 3 / 54), pending, MATRIX, None, lr=LR, keep=True)
    assert index.tolist() == [0, 1, 21]
    assert taken.tolist() == [1.0, 1.0, -5.0]


def test_topk_takes_a_share_rounded_up_and_never_a_zero():
    pending = np.zeros(N, np.float32)
    parameter(pending, MATRIX)[0, :3] = (1.0, 2.0, 3.0)
    index, _ = take(Selection("topk", 0.02), pending, MATRIX, None, lr=LR, keep=True)
    assert index.tolist() == [1, 2]  # 1.08 elements are two
    index, _ = take(Selection("topk", 1.0), pending, MATRIX, None, lr=LR, keep=True)
    assert index.tolist() == [0]


def test_a_threshold_is_counted_in_step_sizes():
    pending = np.zeros(N, np.float32)
    parameter(pending, MATRIX)[0, :3] = (2.9, -3.0, 3.1)
    index, _ = take(Selection("threshold", 2.0), pending, MATRIX, None, lr=1.5, keep=True)
    assert index.tolist() == [1, 2]


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_taken_is_gone_and_the_rest_of_the_candidates_stays_or_is_dropped(keep):
    pending = initial()
    before = pending.copy()
    rows = np.array([1, 4], np.int32)
    index, taken = take(Selection("topk", 0.3), pending, EMBEDDING, rows, lr=LR, keep=keep)
    flat = parameter(pending, EMBEDDING).reshape(-1)
    was = parameter(before, EMBEDDING).reshape(-1)
    assert set(index // 5) <= {1, 4}
    np.testing.assert_array_equal(taken, was[index])
    assert not flat[index].any()
    candidates = np.r_[5:10, 20:25]
    rest = np.setdiff1d(candidates, index)
    np.testing.assert_array_equal(flat[rest], was[rest] if keep else 0)
    others = np.setdiff1d(np.arange(EMBEDDING.size), candidates)
    np.testing.assert_array_equal(flat[others], was[others])


@pytest.mark.parametrize("text", ["topk", "topk:0", "topk:1.1", "topk:x", "threshold:-1", "some:1"])
def test_a_selection_that_makes_no_sense_is_refused_with_what_is_wanted(text):
    with pytest.raises(ValueError, match="wanted none, topk:F"):
        Selection.parse(text)
