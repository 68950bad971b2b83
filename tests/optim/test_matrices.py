"""Rules of hidden matrices: Muon's polynomials, SOAP's bases, APOLLO's projections."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim import Apollo, ApolloMini, Muon, RunContext, Soap, apollo
from mlxhog.optim.apollo import draw_projection
from mlxhog.optim.muon import ORTHOGONALIZATIONS, ROOM
from mlxhog.optim.rule import parameter
from tests.optim.small import BIAS, HIDDEN, MATRIX, Slot, gradients, initial, target
from tests.pairs import each_of
from tests.tolerances import APOLLO_GOLDEN, ORTHOGONAL_F32, SOAP_F32, assert_close

USE = RunContext(hidden=HIDDEN)
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
    return (left * values) @ right


@pytest.mark.slow
@each_of("name", ORTHOGONALIZATIONS)
@each_of("shape", SHAPES, ids=str)
def test_the_polynomials_change_singular_values_and_nothing_else(shape, name):
    x = drawn(*shape)
    u = np.empty_like(x)
    _native.newton_schulz([x], [u], [1.0], np.float32(ORTHOGONALIZATIONS[name]), threads=1)
    assert_close(u, exact(x, name), ORTHOGONAL_F32)


def test_a_step_is_the_rule():
    flat = initial()
    before = flat.copy()
    rule = Muon(run=USE, beta1=0.8, nesterov=0.3, weight_decay=0.2)
    where = target(rule, flat, "matrix")
    mean, w = np.zeros(MATRIX.shape), parameter(before, MATRIX).astype(np.float64)
    for step in (1, 2, 3):
        g = drawn(*MATRIX.shape, seed=step)
        rule.step(where, {"matrix": g}, lr=0.05, step=step, grad_scale=0.5)
        mean = 0.8 * mean + 0.2 * 0.5 * g
        x = (0.7 * mean + 0.3 * 0.5 * g).astype(np.float32)
        w -= 0.05 * (0.2 * math.sqrt(9) * exact(x, "polar3") + 0.2 * w)
    assert_close(parameter(flat, MATRIX), w, ORTHOGONAL_F32)
    np.testing.assert_allclose(parameter(where.private["m"], MATRIX), mean, rtol=1e-5, atol=1e-7)
    assert not parameter(where.private["v"], MATRIX).any()


LR, DECAY, SCALE = 0.05, 0.2, 0.5
SOAP = Soap(run=USE, every=3, beta1=0.95, weight_decay=DECAY)
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
    where = target(SOAP, flat, "matrix")
    for step in range(1, 15):
        SOAP.step(where, gradients(step), lr=LR, step=step, grad_scale=SCALE)
        if step == 1:
            np.testing.assert_array_equal(parameter(flat, MATRIX), parameter(initial(), MATRIX))
            assert (parameter(flat, BIAS) != parameter(initial(), BIAS)).all()
        if step == 2:
            first = [where.state(name, MATRIX).astype(np.float64) for name in SIDES]
            assert all(map(is_orthonormal, first))
    assert_close(parameter(flat, MATRIX), soap(14, 3, *first), SOAP_F32)


def test_bases_that_are_an_average_are_computed_anew_and_good_ones_stay():
    grads = {"matrix": gradients(1)["matrix"]}
    where = target(SOAP, initial(), "matrix")
    for step in (1, 2):
        SOAP.step(where, grads, lr=LR, step=step)
    basis = where.state("left_basis", MATRIX)
    good = basis.copy()
    SOAP.step(where, grads, lr=LR, step=3)
    np.testing.assert_array_equal(basis, good)
    basis[...] = (basis + basis[::-1]) / 2
    SOAP.step(where, grads, lr=LR, step=4)
    assert is_orthonormal(basis)


GOLDEN = Path(__file__).parents[1] / "golden" / "apollo"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def rule_of(group):
    """The optimizer of a group of parameters, with the package's defaults."""
    beta1, beta2 = group.get("betas", (0.9, 0.999))
    by_matrix = group.get("scale_type") == "tensor"  # of rank 1
    return (ApolloMini if by_matrix else Apollo)(
        run=RunContext(hidden=frozenset({"p"} if "rank" in group else ())),
        **({} if by_matrix else {"rank": group.get("rank")}), scale=group.get("scale"),
        every=group.get("update_proj_gap", 200), beta1=beta1, beta2=beta2,
        eps=group.get("eps", 1e-6), weight_decay=group.get("weight_decay", 0.0),
    )  # fmt: skip


@pytest.mark.slow
@each_of("case", CASES)
def test_steps_are_those_of_the_authors_package(case, monkeypatch):
    monkeypatch.setattr(apollo.Projected, "zero_guard", False)
    data = np.load(GOLDEN / f"{case}.npz")
    config = json.loads(str(data["config"]))
    groups = [{**config["opt"], **group} for group in config["groups"] for _ in group["shapes"]]
    for number, group in enumerate(groups):
        prefix = f"p{number}_"
        own = {n.removeprefix(prefix): data[n] for n in data.files if n.startswith(prefix)}

        def recorded(slot, rank, refresh, *, own=own, **_):
            return own["proj"][refresh].astype(np.float32)

        monkeypatch.setattr(apollo, "draw_projection", recorded)
        rule, slot = rule_of(group), Slot("p", own["init"].shape, 32)
        flat = np.zeros(slot.offset + slot.size + 32, np.float32)
        parameter(flat, slot)[...] = own["init"]
        where = target(rule, flat, "p", slots={"p": slot})
        steps = [(k, grad) for k, grad in enumerate(own["grads"]) if not np.isnan(grad).all()]
        for count, (at, grad) in enumerate(steps, start=1):
            rule.step(where, {"p": grad.astype(np.float32)}, lr=group["lr"], step=count)
            assert_close(parameter(flat, slot), own["params"][at], APOLLO_GOLDEN)
            for name, moment in (("m", "exp_avg"), ("v", "exp_avg_sq")):
                assert_close(where.state(name, slot), own[moment][at], APOLLO_GOLDEN)
            if not np.isnan(norm := own["nl_norm"][at]):
                assert_close(where.state("norm", slot)[0], norm, APOLLO_GOLDEN)


def test_a_projection_is_the_same_in_every_process_and_another_for_every_refresh():
    p = draw_projection(MATRIX, 4, 0, seed=3, right=False)
    assert p.shape == (6, 4)
    assert p.dtype == np.float32
    # As any NumPy draws it: Philox's numbers and the normal ones made of them are fixed.
    np.testing.assert_allclose(p[0, :2], (0.17810124, -0.46952346), rtol=1e-6)
    np.testing.assert_array_equal(p, draw_projection(MATRIX, 4, 0, seed=3, right=False))
    others = [
        draw_projection(MATRIX, 4, 1, seed=3, right=False),
        draw_projection(MATRIX, 4, 0, seed=4, right=False),
        draw_projection(Slot("other", (6, 9), 0), 4, 0, seed=3, right=False),
    ]
    assert all(not np.isclose(p, other).any() for other in others)


def test_a_gradient_of_zeros_does_not_stop_a_matrix_as_in_the_package():
    rule, flat = Apollo(run=USE, rank=2), initial()
    where, lengths = target(rule, flat), []
    for step in range(1, 7):
        before, grad = flat.copy(), np.random.default_rng(step).standard_normal(MATRIX.shape)
        rule.step(where, {"matrix": np.float32(grad * (step != 3))}, lr=0.1, step=step)
        lengths.append(float(np.linalg.norm(flat - before)))
    assert lengths[2] == 0
    assert min(lengths[3:]) > 0.3 * lengths[0]
