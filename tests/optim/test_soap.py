"""SOAP: the steps of its algorithm, and its bases."""

import math

import numpy as np

from mlxhog.optim import Soap, Use
from tests.optim.small import BIAS, HIDDEN, MATRIX, gradients, initial, parameter, target
from tests.tolerances import SOAP_F32, assert_close

LR, DECAY, SCALE = 0.05, 0.2, 0.5
RULE = Soap(use=Use(hidden=HIDDEN), every=3, beta1=0.95, weight_decay=DECAY)
SIDES = ("left_basis", "right_basis")


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


def test_steps_are_those_of_the_algorithm_and_the_first_gradient_moves_no_hidden_matrix():
    flat = initial()
    where = target(RULE, flat, "matrix")
    for step in range(1, 15):
        RULE.step(where, gradients(step), lr=LR, step=step, grad_scale=SCALE)
        if step == 1:
            np.testing.assert_array_equal(parameter(flat, MATRIX), parameter(initial(), MATRIX))
            assert (parameter(flat, BIAS) != parameter(initial(), BIAS)).all()
            first = [where.state(name, MATRIX).astype(np.float64) for name in SIDES]
            assert all(map(is_orthonormal, first))
    assert_close(parameter(flat, MATRIX), soap(14, 3, *first), SOAP_F32)


def test_bases_that_are_an_average_are_computed_anew_and_good_ones_stay():
    grads = {"matrix": gradients(1)["matrix"]}
    where = target(RULE, initial(), "matrix")
    RULE.step(where, grads, lr=LR, step=1)
    basis = where.state("left_basis", MATRIX)
    good = basis.copy()
    RULE.step(where, grads, lr=LR, step=2)
    np.testing.assert_array_equal(basis, good)
    basis[...] = (basis + basis[::-1]) / 2
    RULE.step(where, grads, lr=LR, step=3)
    assert is_orthonormal(basis)
