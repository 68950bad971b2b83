"""Muon: what its polynomials do to singular values, its means, and who is hidden."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import Muon, Use
from mlxhog.optim.muon import ORTHOGONALIZATIONS, ROOM
from tests.optim.small import (
    HIDDEN,
    MATRIX,
    initial,
    parameter,
    target,
)
from tests.pairs import each_of
from tests.tolerances import POLAR_F32, assert_close

USE = Use(hidden=HIDDEN)
SHAPES = [(1, 1), (1, 7), (5, 1), (6, 9), (31, 33), (64, 128), (128, 128), (200, 70), (530, 520)]


def drawn(rows, cols, seed=0):
    """A matrix whose singular values spread over two orders of magnitude, as gradients' do."""
    rng = np.random.default_rng((rows, cols, seed))
    x = rng.standard_normal((rows, cols)) * np.linspace(0.1, 1.0, cols) ** 2
    return x.astype(np.float32)


def exact(x, name):
    """The steps as they are defined: odd polynomials of the singular values, in float64."""
    left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    values = values / (ROOM * math.sqrt(float((values**2).sum())))
    for a, b, c in ORTHOGONALIZATIONS[name]:
        values = a * values + b * values**3 + c * values**5
    result = (left * values) @ right
    return result


def native_polar(x, name):
    u = np.empty_like(x)
    _native.polar([x], [u], [1.0], np.float32(ORTHOGONALIZATIONS[name]), threads=1)
    return u


def on_host(xs, scales, coefficients):
    return [scale * native_polar(x, "polar3") for x, scale in zip(xs, scales, strict=True)]


@pytest.mark.slow
@each_of("name", ORTHOGONALIZATIONS)
@each_of("shape", SHAPES, ids=str)
def test_the_polynomials_change_singular_values_and_nothing_else(shape, name):
    x = drawn(*shape)
    assert_close(native_polar(x, name), exact(x, name), POLAR_F32)


def test_a_step_is_the_rule():
    flat = initial()
    before = flat.copy()
    rule = Muon(use=USE, beta1=0.8, nesterov=0.3, weight_decay=0.2)
    where = target(rule, flat, "matrix")
    mean, w = np.zeros(MATRIX.shape), parameter(before, MATRIX).astype(np.float64)
    for step in (1, 2, 3):
        g = drawn(*MATRIX.shape, seed=step)
        rule.step(where, {"matrix": g}, lr=0.05, step=step, grad_scale=0.5)
        mean = 0.8 * mean + 0.2 * 0.5 * g
        x = (0.7 * mean + 0.3 * 0.5 * g).astype(np.float32)
        w -= 0.05 * (0.2 * math.sqrt(9) * exact(x, "polar3") + 0.2 * w)
    assert_close(parameter(flat, MATRIX), w, POLAR_F32)
    np.testing.assert_allclose(parameter(where.private["m"], MATRIX), mean, rtol=1e-5, atol=1e-7)
    assert not parameter(where.private["v"], MATRIX).any()


@each_of("polar", [None, on_host], ids=["native", "on a device"])
@each_of(
    ("rows", "every", "blocks"),
    [(4, None, (4, 4)), (None, 2, (6, 1)), (4, 2, (6, 4)), (100, None, (6, 6))],
)
def test_rows_can_be_orthogonalised_alone_always_or_between_whole_matrices(
    polar, rows, every, blocks
):
    flat = initial()
    w = parameter(flat.copy(), MATRIX).astype(np.float64)
    rule = Muon(use=USE, beta1=0.0, weight_decay=0.0, rows=rows, every=every)
    where = replace(target(rule, flat), polar=polar)
    for step, block in enumerate(blocks, 1):
        g = drawn(*MATRIX.shape, seed=step)
        rule.step(where, {"matrix": g}, lr=0.05, step=step)
        parts = [exact(g[row : row + block], "polar3") for row in range(0, 6, block)]
        w -= 0.05 * 0.2 * math.sqrt(9) * np.concatenate(parts)
    assert_close(parameter(flat, MATRIX), w, POLAR_F32)
