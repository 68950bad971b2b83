"""The problem matrix-completion: its data, its reference values, and every scheme on it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic import problems
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import Ratings
from mlxhog.classic.generators import netflix_like
from mlxhog.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.classic.run import train
from tests.tolerances import COMPLETION_NEAR_SERIAL, COMPLETION_RMSE, RECORDED_F32, assert_close

RECORDED = json.loads((Path(__file__).parent / "netflix_like.json").read_text())


@pytest.fixture(scope="module")
def full(netflix):
    """Training and test ratings of the default size."""
    return hold_out(netflix, seed=0)


@pytest.fixture(scope="module")
def small():
    return MatrixCompletion(*hold_out(netflix_like(20_000), seed=0), rank=5)


# -- reference values -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", sorted(map(int, RECORDED["ranks"])))
def test_serial_sgd_reaches_the_recorded_errors(full, rank):
    expected = RECORDED["ranks"][str(rank)]
    run = train(MatrixCompletion(*full, rank=rank), ClassicConfig(scheme="serial"))
    for name in ("train_error", "test_error"):
        assert_close(run.measures[name], expected["spec"][name], COMPLETION_RMSE)
    for name, value in expected["measured"].items():
        assert_close(run.measures[name], value, RECORDED_F32, label=name)


@pytest.mark.parametrize(
    ("scheme", "write"), [("hogwild", "lossless"), ("hogwild", "racy"), ("aig", "auto")]
)
def test_three_workers_come_near_to_serial(small, scheme, write):
    serial = train(small, ClassicConfig(scheme="serial"))
    assert serial.objective < 0.8 * serial.initial["objective"]
    run = train(small, ClassicConfig(scheme=scheme, write=write, workers=3))
    assert_close(run.objective, serial.objective, COMPLETION_NEAR_SERIAL)


# -- measures -------------------------------------------------------------------------------------


def test_rows_without_a_training_rating_do_not_shrink():
    ratings = Ratings(np.array([0, 0]), np.array([1, 2]), np.array([1.0, 5.0]), 2, 4)
    data = MatrixCompletion(ratings, mu=3.0).data()
    assert data["shrink_users"].tolist() == [1.5, 0]
    assert data["shrink_items"].tolist() == [0, 3, 3, 0]
    assert data["ratings"][:, :2].tolist() == [[0, 1], [0, 2]]
    assert data["ratings"][:, 2].copy().view(np.float32).tolist() == [-2, 2]


# -- data -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tenth_is_held_out_and_nothing_is_in_both(full):
    training, testing = full
    assert testing.n_entries == (training.n_entries + testing.n_entries) // 10
    pairs = [
        data.users.astype(np.int64) * data.n_items + data.items for data in (training, testing)
    ]
    assert (np.diff(np.sort(np.concatenate(pairs))) > 0).all()
    assert training.n_users == testing.n_users == 48_019


def test_ratings_from_files_are_completed(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).write_text("".join(f"{u} {10 * v} {1 + (u + v) % 5}\n"
                                             for u in range(12) for v in range(8)))  # fmt: skip
    config = ClassicConfig(
        data=str(tmp_path / "train"), test_data=str(tmp_path / "test"), rank=6, epochs=2
    )
    problem = problems.create("matrix-completion", config)
    assert problem.about == "96 ratings of 8 items by 12 users, rank 6"
    measures = problem.measures(problem.initial(0))
    assert measures["test_error"] == measures["train_error"]
