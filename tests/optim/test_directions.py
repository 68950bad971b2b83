"""Lion, Adan and SOAP take the steps of their formulas, from native code as from the references."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import Adan, Apollo, Lion, Soap
from mlxhog.optim.gradients import Rows
from mlxhog.optim.soap import refreshed
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.shared import shared
from tests.optim.small import BIAS, EMBEDDING, MATRIX, initial, parameter, target
from tests.pairs import each_of
from tests.tolerances import SOAP_F32, assert_close

HIDDEN = frozenset({"matrix"})
LR, DECAY, SCALE = 0.05, 0.2, 0.5
# float32 rounding of some twenty steps of order LR
RTOL, ATOL = 1e-5, 1e-6

RULES = {
    "lion": Lion(weight_decay=DECAY),
    "adan": Adan(weight_decay=DECAY),
    "apollo": Apollo(hidden=HIDDEN, rank=3, refresh_every=3, weight_decay=DECAY),
    "apollo-mini": Apollo(hidden=HIDDEN, rank=1, tensor=True, weight_decay=DECAY),
    "soap": Soap(hidden=HIDDEN, precondition_every=3, weight_decay=DECAY),
}


def gradients(step):
    rng = np.random.default_rng(step)
    index = np.array([7, 2, 7], np.int32)  # a duplicate, as tokens repeat
    return {
        "matrix": rng.standard_normal(MATRIX.shape, dtype=np.float32),
        "bias": rng.standard_normal(BIAS.shape, dtype=np.float32),
        "embedding": Rows(index, rng.standard_normal((3, 5), dtype=np.float32)),
    }


@each_of("rule", RULES)
def test_native_steps_have_the_references_bits(rule):
    flats, states = [initial(), initial()], []
    for native, flat in zip((True, False), flats, strict=True):
        optimizer = replace(RULES[rule], native=native)
        where = target(optimizer, flat, "matrix", "embedding")
        for step in range(1, 6):
            optimizer.step(where, gradients(step), lr=LR, step=step, grad_scale=SCALE)
        states.append(where.private)
    np.testing.assert_array_equal(*[flat.view(np.uint32) for flat in flats])
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert not np.array_equal(flats[0], initial())


@each_of("mode", WRITE_MODES)
@each_of("rule", RULES)
def test_every_write_mode_gives_the_same_bits_with_one_worker(rule, mode):
    optimizer, flat = RULES[rule], initial()
    racy = target(optimizer, flat, "matrix")
    with shared(len(flat), 16) as segment:
        segment.floats[...] = flat
        locks = segment.locks(1) if mode == "lossless" else None
        where = target(optimizer, segment.floats, "matrix")
        where = replace(where, locks=locks, mode=WRITE_MODES[mode])
        for step in (1, 2, 3):
            for place in (racy, where):
                optimizer.step(place, gradients(step), lr=LR, step=step, seed=step)
        np.testing.assert_array_equal(segment.floats, flat)
        assert not segment.words.any()


@each_of("rule", RULES)
def test_rows_that_a_gradient_does_not_touch_stay(rule):
    optimizer, flat = RULES[rule], initial()
    where = target(optimizer, flat, "embedding")
    for step in (1, 2):
        optimizer.step(where, gradients(step), lr=LR, step=step)
    changed = parameter(flat, EMBEDDING) != parameter(initial(), EMBEDDING)
    assert np.flatnonzero(changed.any(axis=1)).tolist() == [2, 7]


@each_of("rule", RULES)
def test_a_step_can_wait_in_the_worker(rule):
    optimizer, flat = RULES[rule], initial()
    direct, pending = initial(), np.zeros_like(flat)
    waiting = replace(target(optimizer, flat, "matrix"), pending=pending)
    for place in (target(optimizer, direct, "matrix"), waiting):
        optimizer.step(place, gradients(1), lr=LR, step=1)
    np.testing.assert_array_equal(flat, initial())
    np.testing.assert_array_equal(flat + pending, direct)


def lion(steps):
    w, m = parameter(initial(), MATRIX).astype(np.float64), np.zeros(MATRIX.shape)
    for step in range(1, steps + 1):
        g = SCALE * gradients(step)["matrix"].astype(np.float64)
        w -= LR * (np.sign(0.9 * m + 0.1 * g) + DECAY * w)
        m = 0.99 * m + 0.01 * g
    return w


def adan(steps):
    """Algorithm 1 of the paper with the authors' bias corrections, in the paper's letters."""
    w, prev = parameter(initial(), MATRIX).astype(np.float64), None
    m, v, n = (np.zeros(MATRIX.shape) for _ in range(3))
    b1, b2, b3 = 0.98, 0.92, 0.99
    for k in range(1, steps + 1):
        g = SCALE * gradients(k)["matrix"].astype(np.float64)
        d = np.zeros_like(g) if prev is None else g - prev
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        eta = LR / (np.sqrt(n / (1 - b3**k)) + 1e-8)
        w = (w - eta * (m / (1 - b1**k) + b2 * v / (1 - b2**k))) / (1 + LR * DECAY)
        prev = g
    return w


@pytest.mark.parametrize("name", ["lion", "adan"])
def test_steps_are_those_of_the_formula(name):
    flat = initial()
    where = target(RULES[name], flat, "matrix")
    for step in range(1, 21):
        grads = {"matrix": gradients(step)["matrix"]}
        RULES[name].step(where, grads, lr=LR, step=step, grad_scale=SCALE)
    expected = {"lion": lion, "adan": adan}[name](20)
    np.testing.assert_allclose(parameter(flat, MATRIX), expected, rtol=RTOL, atol=ATOL)


def is_orthonormal(basis):
    return bool(np.allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5))


def soap(steps, every, ql, qr):
    """Algorithm 3 of the paper in float64; the first gradient only begins L and R.

    Their first eigenvectors are given: those of equal eigenvalues may be turned.
    """
    w = parameter(initial(), MATRIX).astype(np.float64)
    m, v, b = np.zeros(MATRIX.shape), np.zeros(MATRIX.shape), 0.95
    for k in range(steps):
        g = SCALE * gradients(k + 1)["matrix"].astype(np.float64)
        if k == 0:
            left, right = (1 - b) * g @ g.T, (1 - b) * g.T @ g
            for x, q in ((left, ql), (right, qr)):
                turned = q.T @ x @ q
                np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-6)
            continue
        m = b * m + (1 - b) * g
        v = b * v + (1 - b) * (ql.T @ g @ qr) ** 2
        turned = (ql.T @ m @ qr) / (np.sqrt(v) + 1e-8)
        size = LR * math.sqrt(1 - b**k) / (1 - b**k)
        w = w - size * (ql @ turned @ qr.T) - LR * DECAY * w
        left, right = b * left + (1 - b) * g @ g.T, b * right + (1 - b) * g.T @ g
        if k % every == 0:
            orders = [np.argsort(-np.diag(q.T @ x @ q)) for q, x in ((ql, left), (qr, right))]
            v = v[np.ix_(*orders)]
            ql, qr = (
                np.linalg.qr(x @ q[:, order])[0]
                for x, q, order in zip((left, right), (ql, qr), orders, strict=True)
            )
    return w


def test_soap_takes_the_steps_of_its_algorithm():
    flat = initial()
    where = target(RULES["soap"], flat, "matrix")
    first = []
    for step in range(1, 15):
        grads = {"matrix": gradients(step)["matrix"]}
        RULES["soap"].step(where, grads, lr=LR, step=step, grad_scale=SCALE)
        if step == 1:
            sides = ("left_basis", "right_basis")
            first = [where.state(name, MATRIX).astype(np.float64) for name in sides]
    assert_close(parameter(flat, MATRIX), soap(14, 3, *first), SOAP_F32)


def test_soaps_first_gradient_moves_no_hidden_matrix():
    flat = initial()
    where = target(RULES["soap"], flat, "matrix")
    RULES["soap"].step(where, gradients(1), lr=LR, step=1)
    np.testing.assert_array_equal(parameter(flat, MATRIX), parameter(initial(), MATRIX))
    assert (parameter(flat, BIAS) != parameter(initial(), BIAS)).all()
    for name in ("left_basis", "right_basis"):
        assert is_orthonormal(where.state(name, MATRIX))


def test_a_refreshed_basis_comes_nearer_to_the_eigenvectors():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    second = ((vectors * np.geomspace(1, 1e-3, 8)) @ vectors.T).astype(np.float32)

    def off_diagonal(basis):
        turned = basis.T @ second @ basis
        return float(np.abs(turned - np.diag(np.diag(turned))).max())

    basis, distances = np.eye(8, dtype=np.float32), []
    for _ in range(6):
        distances.append(off_diagonal(basis))
        basis, order = refreshed(second, basis)
        assert sorted(order) == list(range(8))
        assert is_orthonormal(basis)
    assert distances[-1] < 0.1 * distances[0]


def test_bases_that_are_an_average_are_computed_anew_and_good_ones_stay():
    grads = {"matrix": gradients(1)["matrix"]}
    where = target(RULES["soap"], initial(), "matrix")
    RULES["soap"].step(where, grads, lr=LR, step=1)
    basis = where.state("left_basis", MATRIX)
    good = basis.copy()
    RULES["soap"].step(where, grads, lr=LR, step=2)
    np.testing.assert_array_equal(basis, good)
    basis[...] = (basis + basis[::-1]) / 2
    RULES["soap"].step(where, grads, lr=LR, step=3)
    assert is_orthonormal(basis)


def test_sides_that_are_too_long_have_no_basis(monkeypatch):
    monkeypatch.setattr("mlxhog.optim.soap.LONGEST", 6)
    rule, flat = Soap(hidden=HIDDEN), initial()
    where = target(rule, flat)
    assert MATRIX.name in where.places["left"]
    assert MATRIX.name not in where.places["right"]
    for step in (1, 2):
        rule.step(where, {"matrix": gradients(step)["matrix"]}, lr=LR, step=step)
    assert np.isfinite(flat).all()
    assert (parameter(flat, MATRIX) != parameter(initial(), MATRIX)).all()


def test_state_of_another_size_than_its_gradient_is_refused():
    g, m = np.zeros((2, 3), np.float32), np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="m has 5 floats, its gradient 6"):
        _native.lion_direction(g, m, g.copy(), beta1=0.9, beta2=0.99)
