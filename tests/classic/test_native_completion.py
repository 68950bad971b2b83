"""Matrix completion in C++: what one worker computes, to the bit, and what several keep."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog import _native
from tests.classic.native import KINDS, alone, orders
from tests.classic.pair_problems import Factors, in_order, table
from tests.classic.pair_references import completion_epoch
from tests.pairs import each_of
from tests.tolerances import CLASSIC_STEP_F32, assert_close

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/single_steps.json").read_text())
GAMMA = 0.05
SCHEMES = tuple(kind for kind in KINDS if kind != "hot_cold")


def assert_same_bits(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_step_is_the_recorded_one():
    case = GOLDEN["mc"]
    left, right = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    left[0, :2], right[0, :2] = case["L"], case["R"]
    shrink = [np.array([case["mu"] / case[degree]], np.float32) for degree in ("deg_u", "deg_v")]
    problem = _native.CompletionProblem(left, right, table([(0, 0, case["Z"])]), *shrink)
    assert_close(problem.squared_error(), case["err"] ** 2, CLASSIC_STEP_F32)
    problem.run(alone("private"), np.zeros(1, np.int32), case["gamma"])
    assert_close(left[0, :2], case["L_new"], CLASSIC_STEP_F32)
    assert_close(right[0, :2], case["R_new"], CLASSIC_STEP_F32)
    assert not left[0, 2:].any()
    assert not right[0, 2:].any()


@each_of("longest", [0.0, 0.7])
@each_of("batch", [1, 3])
@each_of("width", [16, 32, 48])
def test_one_worker_is_sequential_sgd_bit_for_bit(width, batch, longest):
    data = Factors.random(width=width)
    actual, expected = data.copies(), data.copies()
    order = np.concatenate([orders(300, 1)[0], orders(300, 1, seed=1)[0]])
    problem = data.problem(*actual, longest=longest)
    assert problem.run(alone("private"), order, GAMMA, batch) == 600
    completion_epoch(
        *expected,
        in_order(data.ratings, order),
        data.shrink_users,
        data.shrink_items,
        GAMMA,
        batch=batch,
        longest=longest,
    )
    assert_same_bits(actual, expected)
    assert np.abs(actual[0] - data.left).max() > 0.01


@each_of("kind", SCHEMES[1:])
@each_of("batch", [1, 3])
@each_of("width", [16, 32, 48])
def test_every_scheme_with_one_worker_gives_the_bits_of_serial(width, batch, kind):
    data = Factors.random(n=3000, width=width)
    order = orders(3000, 1)[0]
    serial, actual = data.copies(), data.copies()
    data.problem(*serial).run(alone("private"), order, GAMMA, batch)
    assert data.problem(*actual).run(alone(kind), order, GAMMA, batch) == 3000
    assert_same_bits(actual, serial)


def test_columns_past_the_rank_stay_zero():
    data = Factors.random()
    for rows in (data.left, data.right):
        rows[:, 10:] = 0
    actual = data.copies()
    data.problem(*actual).run(alone("private"), orders(300, 1)[0], GAMMA)
    assert not any(rows[:, 10:].any() for rows in actual)


def test_no_row_is_longer_than_the_norm_allows():
    data = Factors.random()
    actual = data.copies()
    data.problem(*actual, longest=0.5).run(alone("private"), orders(300, 1)[0], GAMMA)
    assert max(np.linalg.norm(rows, axis=1).max() for rows in actual) <= 0.5 + 1e-6


def test_the_squared_error_is_the_formula_in_float64():
    data = Factors.random(width=48)
    problem = data.problem(*data.copies())
    expected = sum(
        (data.left[u].astype(np.float64) @ data.right[v] - value) ** 2
        for u, v, value in data.ratings
    )
    assert problem.squared_error() == pytest.approx(expected, rel=1e-12)
    data.left[0, 0] = np.inf
    assert not np.isfinite(data.problem(*data.copies()).squared_error())


@each_of(
    ("ratings", "message"),
    [
        ([(20, 0, 1.0)], "example 0 names row 20 of 20"),
        ([(0, 0, 1.0), (-1, 0, 1.0)], "example 1 names row -1 of 20"),
        ([(0, 9, 1.0)], "example 0 names row 9 of 9"),
    ],
)
def test_ratings_of_rows_that_do_not_exist_are_refused(ratings, message):
    data = Factors.random()
    wrong = Factors(data.left, data.right, ratings, data.shrink_users, data.shrink_items)
    with pytest.raises(ValueError, match=message):
        wrong.problem(*wrong.copies())


def test_rows_of_another_width_are_refused():
    data = Factors.random(width=16)
    narrow = Factors(
        data.left[:, :10].copy(),
        data.right[:, :10].copy(),
        data.ratings,
        data.shrink_users,
        data.shrink_items,
    )
    with pytest.raises(ValueError, match="10 and 10 floats; wanted one multiple of 16"):
        narrow.problem(*narrow.copies())
    with pytest.raises(ValueError, match="shrink_users has 19 entries; wanted 20"):
        _native.CompletionProblem(
            data.left, data.right, table(data.ratings), data.shrink_users[1:], data.shrink_items
        )


def test_matrix_completion_has_no_hot_head():
    data = Factors.random()
    with pytest.raises(ValueError, match="no hot head"):
        data.problem(*data.copies()).run(alone("hot_cold"), orders(300, 1)[0], GAMMA)
