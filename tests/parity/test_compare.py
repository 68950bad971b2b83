"""Two arrays are compared by the largest difference, and what is allowed has a reason."""

import numpy as np
import pytest

from mlxhog.parity import compare, tolerances
from mlxhog.parity.subject import ModelPlan, ParitySide, ParitySubject
from tests.pairs import each_of


def one(name, actual, expected, start=None):
    (row,) = compare.tensor_rows(
        "a", {name: actual}, "b", {name: expected}, precision="float32", start=start or {},
        conditions={}, pairs=[(name, name)],
    )  # fmt: skip
    return row


def test_a_row_says_how_far_apart_relative_to_what_and_where():
    expected = np.array([[1.0, -4.0], [2.0, 3.0]])
    before = expected.copy()
    before[1, 0] += 0.5
    row = one("logits", before, expected)
    assert (row.max_abs, row.max_rel, row.where, row.ok) == (0.5, 0.125, (1, 0), False)
    assert (row.got, row.wanted) == (2.5, 2.0)


@pytest.mark.parametrize(("error", "ok"), [(0.9e-4, True), (1.1e-4, False)])
def test_logits_may_differ_by_one_ten_thousandth(error, ok):
    expected = np.linspace(-4, 4, 50)
    assert one("logits", expected + error, expected).ok is ok


@pytest.mark.parametrize(("error", "ok"), [(1.9e-3, True), (2.1e-3, False)])
def test_gradients_are_measured_by_the_largest_entry_of_the_tensor(error, ok):
    expected = np.array([1e-5, 3e-7, 0.0])
    assert one("grad/w", expected + error * 1e-5, expected).ok is ok


def test_a_gradient_that_should_vanish_is_measured_by_the_others():
    expected = {"grad/w": np.array([2.0]), "grad/closed": np.array([0.0])}
    for error, ok in ((1e-7, True), (1e-6, False)):
        actual = expected | {"grad/closed": np.array([error])}
        *_, row = compare.tensor_rows(
            "a",
            actual,
            "b",
            expected,
            precision="float32",
            start={},
            conditions={},
            pairs=[(n, n) for n in expected],
        )
        assert row.ok is ok


def test_a_parameter_after_steps_is_measured_by_how_far_it_moved():
    start = {"w": np.full(3, 7.0)}
    expected = start["w"] + np.array([0.0, 0.1, 0.2])
    assert one("after/sgd/w", expected + 1e-3, expected, start).ok
    assert not one("after/sgd/w", expected + 1e-2, expected, start).ok


def conditioned(name, actual, expected, condition, **more):
    (row,) = compare.tensor_rows(
        "a", {name: actual}, "b", {name: expected}, precision="float32",
        conditions={name: condition}, pairs=[(name, name)], **{"start": {}} | more,
    )  # fmt: skip
    return row


@each_of("value", [0.1, 137.9, 2e5])
def test_a_parameter_may_be_rounded_at_every_step(value):
    start = {"w": np.full(3, value, np.float32)}
    expected = start["w"].astype(np.float64) + 1e-5
    actual = expected + 3 * np.spacing(np.float32(value))
    assert conditioned("after/sgd/w", actual, expected, 0.0, start=start, steps=3).ok
    far = expected + 7 * np.spacing(np.float32(value))
    assert not conditioned("after/sgd/w", far, expected, 0.0, start=start, steps=3).ok


def test_steps_that_amplify_rounding_are_allowed_what_they_make_of_it():
    start = {"w": np.zeros(3, np.float32)}
    expected = np.array([0.0, 1e-4, 2e-4])
    actual = expected + 6e-6  # 3 % of the way
    assert not conditioned("after/sgd/w", actual, expected, 1e-6, start=start, steps=3).ok
    assert conditioned("after/sgd/w", actual, expected, 2e-3, start=start, steps=3).ok


def test_a_wrong_sign_of_a_thousandth_of_the_largest_is_seen_in_what_is_well_conditioned():
    expected = np.array([1.0, 1e-3, -0.5])
    actual = np.array([1.0, -1e-3, -0.5])
    row = conditioned("grad/w", actual, expected, 1e-6)
    assert (row.ok, row.where) == (False, (1,))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_disagrees_even_with_itself(odd):
    x = np.array([1.0, odd, 2.0])
    row = one("hidden/0", x, x)
    assert not row.ok
    assert (row.where, row.max_abs, row.reason) == ((1,), None, "not finite")


def test_other_shapes_disagree():
    row = one("state/0/C", np.zeros((2, 3)), np.zeros((3, 2)))
    assert not row.ok
    assert row.reason == "the shapes are (2, 3) and (3, 2)"


def test_large_tensors_are_compared_in_pieces(monkeypatch):
    monkeypatch.setattr(compare, "_PIECE", 7)
    expected = np.arange(60.0).reshape(5, 12)
    before = expected.copy()
    before[3, 8] -= 1.0
    row = one("hidden/1", before, expected)
    assert (row.where, row.max_abs) == ((3, 8), 1.0)
    assert row.max_rel == pytest.approx(1 / 59)


@each_of(
    ("name", "kind"),
    [
        ("hidden/out_norm", "hidden"),
        ("stepwise/logits", "logits"),
        ("stepwise/state/0/C", "state"),
        ("grad/backbone.blocks.0.h", "grad"),
        ("after/adamw/lm_head.weight", "after"),
        ("chunkwise/grad/q", "grad"),
        ("sequence/h", "h"),
        ("stepwise/states/c", "states"),
        ("conv/y", "y"),
    ],
)
def test_the_name_of_a_result_says_its_kind(name, kind):
    assert compare.kind_of(name) == kind


def test_every_tolerance_has_a_reason():
    for table in tolerances.TABLES.values():
        assert set(table) == set(tolerances.FLOAT32)
        assert all(tolerance.reason for tolerance in table.values())


def subject():
    return ParitySubject("made up", ModelPlan(None), {}, {})


NUMPY, TORCH, MLX = (
    ParitySide("numpy", "numpy"),
    ParitySide("torch:cpu", "torch:cpu"),
    ParitySide("mlx:cpu", "mlx"),
)


def test_every_side_meets_the_reference_its_twin_and_itself():
    x = {"logits": np.ones(2), "stepwise/logits": np.ones(2)}
    computed = {"numpy": x, "torch:cpu": x, "mlx:cpu": x}
    rows = list(compare.rows(subject(), [NUMPY, TORCH, MLX], computed, {}))
    assert {(row.a, row.b) for row in rows} == {
        ("torch:cpu", "numpy"), ("mlx:cpu", "numpy"), ("mlx:cpu", "torch:cpu"),
        ("numpy", "numpy"), ("torch:cpu", "torch:cpu"), ("mlx:cpu", "mlx:cpu"),
    }  # fmt: skip
    itself = [row for row in rows if row.a == row.b]
    assert {(row.what, row.against) for row in itself} == {("stepwise/logits", "logits")}


def test_the_first_disagreement_is_the_first_of_the_computation():
    exact = {"hidden/0": np.ones(1), "hidden/1": np.ones(1), "logits": np.ones(1)}
    wrong = exact | {"hidden/1": np.full(1, 1.1), "logits": np.full(1, 9.0)}
    computed = {"numpy": exact, "torch:cpu": wrong}
    rows = list(compare.rows(subject(), [NUMPY, TORCH], computed, {}))
    first = compare.first_bad(list(reversed(rows)), computed)
    assert first is not None
    assert first.what == "hidden/1"
