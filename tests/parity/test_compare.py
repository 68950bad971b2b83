"""Two arrays are compared by the largest difference, and what is allowed has a reason."""

import numpy as np
import pytest

from mlxhog.parity import compare, tolerances
from mlxhog.parity.subject import ParitySide, ParitySubject
from tests.models.sample import config
from tests.pairs import each_of

EXACT, SINGLE, CPU = (ParitySide(name, name) for name in ("numpy", "torch:mps", "torch:cpu"))


def one(name, actual, expected, *, pairs=None, sides=(SINGLE, EXACT), conditions=None, **more):
    """The comparison of one tensor, or the last of some."""
    if not isinstance(expected, dict):
        actual, expected = {name: np.asarray(actual)}, {name: np.asarray(expected)}
    pairs, more = pairs or [(n, n) for n in expected], {"start": {}} | more
    *_, row = compare.tensor_rows(actual, expected, pairs, sides, conditions or {}, **more)
    return row


def test_a_row_says_how_far_apart_relative_to_what_and_where():
    expected = np.arange(60.0).reshape(5, 12)
    actual = expected.copy()
    actual[3, 8] -= 1.0
    row = one("hidden/1", actual, expected)
    assert (row.max_abs, row.where, row.got, row.wanted, row.ok) == (1, (3, 8), 43, 44, False)
    assert row.max_rel == pytest.approx(1 / 59)
    row = one("state/0/C", np.zeros((2, 3)), np.zeros((3, 2)))
    assert (row.ok, row.reason) == (False, "the shapes are (2, 3) and (3, 2)")
    for odd in (np.nan, np.inf):  # disagrees even with itself
        row = one("hidden/0", [1.0, odd, 2.0], [1.0, odd, 2.0])
        assert (row.ok, row.where, row.max_abs, row.reason) == (False, (1,), None, "not finite")


SMALL, LINE = np.array([1e-5, 3e-7, 0.0]), np.linspace(-4, 4, 50)
MOVED, START = 7.0 + np.array([0.0, 0.1, 0.2]), {"w": np.full(3, 7.0)}
SIGN, TINY = np.array([1.0, 1e-3, -0.5]), np.array([0.0, 1e-4, 2e-4])


def last_places(value, units):
    """A parameter of this value after three steps, off by some units in its last place."""
    expected = np.full(3, value, np.float32).astype(np.float64) + 1e-5
    return expected + units * np.spacing(np.float32(value)), expected


@each_of(
    ("name", "actual", "expected", "condition", "start", "ok"),
    [
        ("logits", LINE + 0.9e-4, LINE, None, {}, True),  # one ten-thousandth
        ("logits", LINE + 1.1e-4, LINE, None, {}, False),
        ("grad/w", SMALL + 1.9e-8, SMALL, None, {}, True),  # by the largest entry of the tensor
        ("grad/w", SMALL + 2.1e-8, SMALL, None, {}, False),
        ("after/sgd/w", MOVED + 1e-3, MOVED, None, START, True),  # by how far it moved
        ("after/sgd/w", MOVED + 1e-2, MOVED, None, START, False),
        ("after/sgd/w", TINY + 6e-6, TINY, 2e-3, {"w": np.zeros(3)}, True),  # steps amplify
        ("after/sgd/w", TINY + 6e-6, TINY, 1e-6, {"w": np.zeros(3)}, False),
        ("grad/w", SIGN * [1, -1, 1], SIGN, 1e-6, {}, False),  # a sign of a thousandth is seen
        *(
            ("after/sgd/w", *last_places(value, units), 0.0, {"w": np.full(3, value)}, units < 5)
            for value in (0.1, 137.9, 2e5)
            for units in (3, 7)
        ),
    ],
)
def test_a_difference_is_allowed_by_the_scale_and_the_condition_of_its_tensor(
    name, actual, expected, condition, start, ok
):
    conditions = {} if condition is None else {name: condition}
    assert one(name, actual, expected, conditions=conditions, start=start, steps=3).ok is ok


def test_every_side_meets_the_reference_and_itself_and_the_first_disagreement_is_named():
    sides = [ParitySide(name, name) for name in ("numpy", "torch:cpu", "mlx:cpu")]
    exact = {n: np.ones(1) for n in ("hidden/0", "hidden/1", "logits", "stepwise/logits")}
    wrong = exact | {"hidden/1": np.full(1, 1.1), "logits": np.full(1, 9.0)}
    computed = {"numpy": exact, "torch:cpu": exact, "mlx:cpu": wrong}
    subject = ParitySubject(title="made up", cfg=config())
    rows = list(compare.rows(subject, sides, computed, {}))
    assert {(row.a, row.b) for row in rows} == {
        ("torch:cpu", "numpy"), ("mlx:cpu", "numpy"),
        ("numpy", "numpy"), ("torch:cpu", "torch:cpu"), ("mlx:cpu", "mlx:cpu"),
    }  # fmt: skip
    itself = [row for row in rows if row.a == row.b]
    assert {(row.what, row.against) for row in itself} == {("stepwise/logits", "logits")}
    assert compare.first_bad(list(reversed(rows)), computed).what == "hidden/1"


def test_a_condition_is_how_far_a_result_moves_when_its_inputs_are_rounded():
    def results(x):
        a, b = x["a"].astype(np.float64), x["b"].astype(np.float64)
        yield "grad/cancels", a - b
        yield "grad/adds", a + b
        yield "grad/kink", np.where(x["a"] > 1.0 + 6 * tolerances.ROUNDING, 2.0, 1.0)
        yield "after/sgd/a", a + 0.25  # its way counts, not where it began

    inputs = {"a": np.full(50, 1.0, np.float32), "b": np.full(50, 0.9999, np.float32)}
    conditions = tolerances.measure(dict(results(inputs)), inputs, results)
    assert conditions["grad/adds"] < 1e-7
    assert 1e-4 < conditions["grad/cancels"] < 1e-2
    assert conditions["grad/kink"] == 1.0 / 16.0
    assert conditions["after/sgd/a"] < 1e-12
    moved = tolerances.rounded(inputs, 1)["a"]
    assert 0 < np.abs(moved - 1).max() <= 2.0**-24 * 1.001


def test_a_result_without_a_condition_of_its_own_has_that_of_what_it_stands_for():
    conditions = {"grad/w": 1.0, "logits": 3.0, "state/n": 4.0}
    results = {
        "after/adamw/w": 1.0, "stepwise/logits": 3.0, "stepwise/state/n": 4.0, "hidden/0": None,
    }  # fmt: skip
    assert {name: tolerances.condition_of(name, conditions) for name in results} == results
    for side, ok in ((SINGLE, True), (EXACT, False)):
        known, pairs = {"logits": 1e-5}, [("stepwise/logits", "logits")]
        actual, expected = {"stepwise/logits": np.array([5.001])}, {"logits": np.array([5.0])}
        row = one("", actual, expected, pairs=pairs, conditions=known, sides=(side, EXACT))
        assert row.ok is ok
