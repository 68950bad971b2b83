"""A right model never fails; 4 units in one operator, and one wrong sign, always do."""

import numpy as np
import pytest

from mlxhog.parity import compute, operators, tolerances
from mlxhog.parity.compare import operator_rows
from mlxhog.parity.comparison import compare_sides
from mlxhog.parity.engines import NumPyEngine
from mlxhog.parity.subject import ModelPlan, ParitySide, ParitySubject
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.parity.planted import ENTRIES, FaultySide, OperatorFault, SignFault, planted

NUMPY = ParitySide("numpy", "numpy")
OTHERS = (
    ParitySide("torch:cpu", "torch:cpu", "native"),
    ParitySide("torch:cpu+reference", "torch:cpu", "reference"),
    ParitySide("mlx:cpu", "mlx:cpu", "native"),
    ParitySide("mlx:cpu+reference", "mlx:cpu", "reference"),
)
PLANS = {"xlstm": ModelPlan(config()), "xlstm_v1": ModelPlan(v1_config())}


def results_alone(side, plan, fault):
    engine = compute.engine_of(side)
    with planted(engine, fault):
        return dict(operators.results(engine, plan))


def operator_names(plan):
    """Every operator of a family once, without the variants of it."""
    return list(dict.fromkeys(name.split()[0] for name in operators.names(plan)))


@pytest.mark.parametrize("side", OTHERS, ids=lambda side: side.name)
@pytest.mark.parametrize("family", PLANS)
def test_right_operators_agree_and_one_off_by_4_units_does_not(family, side):
    plan = PLANS[family]
    exact = dict(operators.reference(plan))
    rows = list(operator_rows(side.name, results_alone(side, plan, None), "numpy", exact))
    assert len(rows) == 2 * len(operators.names(plan))
    assert [(row.what, row.max_abs) for row in rows if not row.ok] == []
    for name in operator_names(plan):
        for entries in ("all", "random"):
            wrong = results_alone(side, plan, OperatorFault(name, entries))
            bad = {
                row.what.split("/")[1].split()[0]
                for row in operator_rows(side.name, wrong, "numpy", exact)
                if not row.ok
            }
            assert name in bad, entries


@pytest.mark.parametrize("side", OTHERS, ids=lambda side: side.name)
def test_a_single_entry_off_by_4_units_is_found_where_results_are_exact(side):
    plan = PLANS["xlstm_v1"]
    exact = dict(operators.reference(plan))
    for name in ("linears", "block_diagonal", "causal_conv"):
        wrong = results_alone(side, plan, OperatorFault(name, "one"))
        rows = operator_rows(side.name, wrong, "numpy", exact)
        assert f"operator/{name}" in [row.what for row in rows if not row.ok]


@pytest.mark.parametrize("side", OTHERS, ids=lambda side: side.name)
def test_a_single_entry_off_by_twice_what_is_allowed_is_found_in_every_operator(side):
    ulps = 2 * int(operators.ROUNDED) + 1
    for plan in PLANS.values():
        exact = dict(operators.reference(plan))
        for name in operator_names(plan):
            wrong = results_alone(side, plan, OperatorFault(name, "one", ulps))
            rows = operator_rows(side.name, wrong, "numpy", exact)
            assert name in {row.what.split("/")[1].split()[0] for row in rows if not row.ok}


def test_entries_of_a_fault_are_off_by_units_of_their_own():
    y = np.array([1.0, -1000.0, 0.25], np.float32)
    units = {entries: OperatorFault("x", entries).offset(y) / np.spacing(y) for entries in ENTRIES}
    assert (units["all"] == 4).all()
    assert (np.abs(units["random"]) == 4).all()
    assert (units["one"] == [0, 4, 0]).all()


def small(**changes):
    cfg = config(**changes)
    tokens, targets = batch(cfg, 2, 9, seed=1)
    plan = ModelPlan(cfg, steps=2)
    return ParitySubject(
        "small", plan, perturbed_params(cfg, 1), {"tokens": tokens, "targets": targets}
    )


def quiet(side, step):
    """No output."""


def first_bad(monkeypatch, side, fault, subject=None):
    """Where a comparison of NumPy and a faulty side disagrees first."""
    monkeypatch.setattr(compute, "compute_side", FaultySide(side.name, fault))
    row = compare_sides(subject or small(), [NUMPY, side], quiet).first_bad
    assert row is not None
    return row


@pytest.mark.slow
def test_the_command_names_the_operator_that_is_off(monkeypatch):
    row = first_bad(monkeypatch, OTHERS[2], OperatorFault("rms_norm"))
    assert (row.what, row.a) == ("operator/rms_norm/rms", "mlx:cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_the_command_names_the_entry_with_the_wrong_sign(monkeypatch):
    name = "backbone.blocks.1.ffn.proj_up.weight"
    row = first_bad(monkeypatch, OTHERS[0], SignFault(name, 7))
    assert row.what == f"grad/{name}"
    assert row.where == (0, 7)
    assert row.got is not None
    assert row.wanted == pytest.approx(-row.got, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_a_wrong_sign_is_found_in_a_gradient_far_smaller_than_others(monkeypatch):
    cfg = config(num_hidden_layers=1)
    tokens, targets = batch(cfg, 1, 2, seed=2)  # of two positions the head norm hides most of k
    params = perturbed_params(cfg, 2)
    subject = ParitySubject("small", ModelPlan(cfg), params, {"tokens": tokens, "targets": targets})
    assert compare_sides(subject, [NUMPY, *OTHERS], quiet).ok
    engine = NumPyEngine()
    engine.load(cfg, params)
    _, grads = engine.differentiate(tokens, targets)
    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    name = "backbone.blocks.0.mlstm_layer.k.weight"
    roundings = np.abs(grads[name]).reshape(-1) / (largest * tolerances.ROUNDING)
    place = int(np.flatnonzero((roundings > 20) & (roundings < 30))[0])
    row = first_bad(monkeypatch, OTHERS[1], SignFault(name, place), subject)
    assert row.what == f"grad/{name}"
    assert row.got is not None
    assert row.wanted == pytest.approx(-row.got, rel=0.2)
