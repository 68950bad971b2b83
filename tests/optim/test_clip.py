"""The global norm: of the whole gradient, duplicate rows summed, finite only if all of it is."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.optim import gradients
from mlxhog.optim.gradients import Rows


def test_the_norm_is_that_of_the_concatenated_gradient() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 7), dtype=np.float32), rng.standard_normal(5, dtype=np.float32)
    whole = np.concatenate([a.ravel(), b]).astype(np.float64)
    assert gradients.global_norm({"a": a, "b": b}) == pytest.approx(
        np.linalg.norm(whole), rel=1e-12
    )


def test_duplicate_rows_are_summed_before_they_are_squared() -> None:
    values = np.array([[3.0], [1.0], [-3.0]], np.float32)
    assert gradients.global_norm({"rows": Rows(np.array([4, 0, 4], np.int32), values)}) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_element_makes_the_norm_not_finite(bad: float) -> None:
    grads = {"a": np.ones(1000, np.float32), "b": np.ones(7, np.float32)}
    assert np.isfinite(gradients.global_norm(grads))
    grads["a"][501] = bad
    assert not np.isfinite(gradients.global_norm(grads))


@pytest.mark.parametrize(
    ("norm", "max_norm", "factor"),
    [(0.1, 0.5, 1.0), (2.0, 0.5, 0.25), (7.0, 0.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_the_factor_brings_a_long_gradient_down_and_leaves_a_short_one(
    norm: float, max_norm: float, factor: float
) -> None:
    assert gradients.clip_factor(norm, max_norm) == pytest.approx(factor, rel=1e-6)
