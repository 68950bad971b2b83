"""The projection onto the simplex, native and in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlxhog import _native
from mlxhog.optim.gradients import Float32
from tests.classic.pair_references import project_onto_simplex
from tests.tolerances import CLASSIC_STEP_F32, SIMPLEX_F32, assert_close

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/single_steps.json").read_text())

ROWS = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


def native(v: Float32) -> Float32:
    rows = v.reshape(1, -1).copy()
    _native.project_onto_simplex(rows)
    return rows[0]


@pytest.mark.parametrize("example", GOLDEN["cut"]["proj_examples"], ids=lambda e: str(e["v"]))
def test_projections_are_the_recorded_ones(example):
    assert_close(native(np.array(example["v"], np.float32)), example["p"], CLASSIC_STEP_F32)


@given(ROWS)
def test_the_native_projection_has_the_bits_of_numpy(v):
    np.testing.assert_array_equal(native(v), project_onto_simplex(v))


@given(ROWS)
def test_a_projected_row_lies_on_the_simplex(v):
    p = native(v)
    assert (p >= 0).all()
    assert_close(p.sum(dtype=np.float64), 1.0, SIMPLEX_F32)


@given(ROWS)
def test_the_projection_is_the_nearest_point(v):
    # The vertices span the simplex, so p is nearest exactly if (v - p).(e_i - p) <= 0 for all i.
    p = project_onto_simplex(v.astype(np.float64))
    away = v - p
    assert (away - away @ p <= 1e-9 * max(1.0, np.abs(v).sum())).all()
    assert_close(native(v), p, SIMPLEX_F32)


@given(ROWS)
def test_projecting_twice_is_projecting_once(v):
    assert_close(native(native(v)), native(v), SIMPLEX_F32)


@given(ROWS)
def test_the_projection_keeps_the_order_of_the_entries(v):
    p = native(v)
    assert (np.diff(p[np.argsort(v, kind="stable")]) >= 0).all()
