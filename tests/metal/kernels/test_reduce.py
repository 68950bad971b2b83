"""Norm, clip factor and the gate for gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.engine import Engine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernels import reduce
from mlxhog.optim.gradients import clip_factor, global_norm
from tests.metal.kernels.numbers import SIZES, Array, assert_same_bits, counter, normal, odd

# Sums of squares in float32: 16 in a thread, a tree of 5 and 8 in a group, then likewise over
# blocks. Each rounding is 6e-8 of a sum of positive terms; their errors mostly cancel.
NORM_RTOL = 1e-6
FACTOR_RTOL = 1e-6  # one division and one addition in float32


def norm(engine: Engine, g: Array) -> Array:
    part = engine.run(reduce.sumsq_partial(g))["part"]
    value: Array = engine.run(reduce.sumsq_final(part))["norm"]
    return value


@pytest.mark.parametrize("n", SIZES)
def test_the_norm_agrees_with_the_sum_in_float64(engine: Engine, n: int) -> None:
    g = normal(n)
    wanted = global_norm({"g": g})
    np.testing.assert_allclose(norm(engine, g), [wanted], rtol=NORM_RTOL)


@pytest.mark.parametrize("n", [1, 257, 4097, 100_003])
def test_the_norm_has_the_same_bits_everywhere_and_under_any_schedule(
    engine: Engine, host_engine: Callable[..., HostEngine], n: int
) -> None:
    g = normal(n, seed=1)
    first = norm(engine, g)
    for chaos in (1, 2):
        again = norm(host_engine("mlx", chaos=chaos, threads=3), g)
        assert_same_bits(again, first, label=f"seed {chaos}")


def test_every_block_has_a_part_of_its_own(engine: Engine) -> None:
    g = normal(2 * reduce.BLOCK + 1)
    part = engine.run(reduce.sumsq_partial(g))["part"]
    wanted = [float((block.astype(np.float64) ** 2).sum()) for block in np.split(g, [4096, 8192])]
    np.testing.assert_allclose(part, wanted, rtol=NORM_RTOL)


def test_parts_of_several_gradients_make_one_norm(engine: Engine) -> None:
    grads = {"a": normal(5000), "b": normal(70).reshape(7, 10)}
    parts = [engine.run(reduce.sumsq_partial(g))["part"] for g in grads.values()]
    total = engine.run(reduce.sumsq_final(np.concatenate(parts)))["norm"]
    np.testing.assert_allclose(total, [global_norm(grads)], rtol=NORM_RTOL)


@pytest.mark.parametrize("n", [1, 256, 5000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_makes_the_norm_so(
    engine: Engine, bad: float, n: int
) -> None:
    g = normal(n)
    g[n // 2] = bad
    assert not np.isfinite(norm(engine, g)).any()


def test_squares_beyond_float32_vanish_or_are_infinite(engine: Engine) -> None:
    assert norm(engine, np.full(9, 1e-30, np.float32)) == 0
    assert norm(engine, np.full(9, 1e30, np.float32)) == np.inf


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1.0, 1e-3, 1e9])
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.4999, 0.5, 1.0, 77.7, 1e30, np.inf, np.nan])
def test_the_clip_factor_is_that_of_the_cpu(engine: Engine, value: float, max_norm: float) -> None:
    launch = reduce.clip_scale(np.array([value], np.float32), max_norm=max_norm)
    scale = engine.run(launch)["scale"]
    np.testing.assert_allclose(scale, [clip_factor(value, max_norm)], rtol=FACTOR_RTOL)
    assert 0 <= scale[0] <= 1


def test_a_gradient_is_clipped_as_on_the_cpu(engine: Engine) -> None:
    g = normal(10_000)
    scale = engine.run(reduce.clip_scale(norm(engine, g), max_norm=0.5))["scale"]
    wanted = clip_factor(global_norm({"g": g}), 0.5)
    np.testing.assert_allclose(scale, [wanted], rtol=NORM_RTOL + FACTOR_RTOL)


@pytest.mark.parametrize("n", SIZES)
def test_the_gate_counts_what_is_not_finite(engine: Engine, n: int) -> None:
    g, found = odd(n), counter()
    engine.run(reduce.nonfinite_count(g, found))
    assert found.tolist() == [np.count_nonzero(~np.isfinite(g)), *[0] * 7]


def test_the_gate_adds_up_over_launches(engine: Engine) -> None:
    found, g = counter(), np.array([np.nan, 1, np.inf], np.float32)
    for _ in range(3):
        engine.run(reduce.nonfinite_count(g, found))
    assert found[0] == 6


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "two norms": (
        lambda: reduce.clip_scale(np.zeros(2, np.float32), max_norm=1),
        r"norm has shape \(2,\)",
    ),
    "small counter": (
        lambda: reduce.nonfinite_count(normal(8), counter()[:1]),
        "found has shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ShapeError, match=message):
        make()
