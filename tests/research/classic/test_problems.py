"""The problems: their reference values alone and with many workers, their measures and files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.generators import abdomen_like, netflix_like
from mlxhog.research.classic.problem import Graph, ProblemMemory, Ratings
from mlxhog.research.classic.problems import create, linear
from mlxhog.research.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.research.classic.problems.cuts import GraphCuts
from mlxhog.research.classic.run import train
from tests.pairs import each_of
from tests.research.classic.native import alone
from tests.research.classic.pair_problems import cut_grid
from tests.tolerances import COMPLETION_RMSE, LOSS_OF_OTHER_DRAWS, RECORDED_F32, assert_close

HERE = Path(__file__).parent
GRID = json.loads((HERE.parents[1] / "golden/hogwild/classic_reference.json").read_text())[
    "cut_grid8"
]
RANKS = json.loads((HERE / "netflix_like.json").read_text())["ranks"]
ABDOMEN = json.loads((HERE / "abdomen_like.json").read_text())
SERIAL = ClassicConfig(strategy="serial")


def sequential(problem, epochs, lr, decay, batch, order_seed=1):
    """Yield the measures after each epoch of plain SGD, with the order of the recorded runs."""
    params = problem.initial(0)
    native = problem.kernel(ProblemMemory(params, problem.data(), {}))
    alone_in_memory = alone("private", len(params["x"]))
    rng = np.random.default_rng(order_seed)
    for epoch in range(epochs):
        order = rng.permutation(problem.n_examples).astype(np.int32)
        native.run(alone_in_memory, order, lr * decay**epoch, batch)
        yield problem.measures(params)


@pytest.mark.slow
def test_the_svm_reaches_the_losses_of_the_recorded_run(text, monkeypatch):
    """Those of the recorded run, whose rows were drawn from the same law in another order."""
    made = {(linear.TEXT_ROWS, 0): text}
    monkeypatch.setattr(linear, "rcv1_like", lambda n, *, seed: made[n, seed])
    *_, measures = sequential(create("svm", ClassicConfig()), 10, lr=0.5, decay=0.8, batch=1)
    recorded = {
        "train_loss": 0.2971, "train_error": 0.0796, "test_loss": 0.5689, "test_error": 0.2233,
    }  # fmt: skip
    for name, expected in recorded.items():
        assert_close(measures[name], expected, LOSS_OF_OTHER_DRAWS, label=name)


@pytest.mark.slow
@pytest.mark.parametrize("rank", sorted(map(int, RANKS)))
def test_serial_completion_reaches_the_recorded_errors(netflix, rank):
    expected = RANKS[str(rank)]
    run = train(MatrixCompletion(*hold_out(netflix, seed=0), rank=rank), SERIAL)
    for name in ("train_error", "test_error"):
        assert_close(run.measures[name], expected["spec"][name], COMPLETION_RMSE)
    for name, value in expected["measured"].items():
        assert_close(run.measures[name], value, RECORDED_F32, label=name)


@pytest.mark.parametrize("side", [8, 16])
def test_serial_cuts_of_abdomen_like_repeat_the_recorded_trace(side):
    run = train(GraphCuts(abdomen_like(side)), SERIAL)
    for number, measures in ABDOMEN["sides"][str(side)]["trace"].items():
        for name, value in measures.items():
            assert_close(run.epochs[int(number) - 1].measures[name], value, RECORDED_F32)


@pytest.mark.parametrize(
    ("strategy", "write", "workers"),
    [("hogwild", "racy", 4), ("round_robin", "auto", 2), ("sync", "auto", 2)],
)
def test_workers_round_the_recorded_grid_to_its_maximum_flow(strategy, write, workers):
    # A turn per edge would make the test one of the system's scheduler.
    batch = {"round_robin": 32, "sync": 128}.get(strategy, 1)
    config = ClassicConfig(
        strategy=strategy, write=write, workers=workers, beta=0.97, epochs=100, batch_size=batch,
        lr=0.02 * batch,
    )  # fmt: skip
    measures = train(GraphCuts(cut_grid()), config).measures
    assert measures["cut"] == GRID["maxflow"]
    assert GRID["maxflow"] < measures["objective"] < 400  # serial is at 383.0 by then


def test_rows_without_a_training_rating_do_not_shrink():
    ratings = Ratings(np.array([0, 0]), np.array([1, 2]), np.array([1.0, 5.0]), 2, 4)
    data = MatrixCompletion(ratings, mu=3.0).data()
    assert data["shrink_users"].tolist() == [1.5, 0]
    assert data["shrink_items"].tolist() == [0, 3, 3, 0]
    assert data["ratings"][:, :2].tolist() == [[0, 1], [0, 2]]
    assert data["ratings"][:, 2].copy().view(np.float32).tolist() == [-2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_two_labels_are_rounded_at_the_cheapest_threshold(seed):
    rng = np.random.default_rng(seed)
    problem = GraphCuts(cut_grid(3, seed=seed))
    x = problem.initial(0)["x"]
    x[9:18, 0] = rng.choice([0.0, 0.2, 0.5, 0.7, 1.0], 9)
    tried = [problem.cut((x[:, 0] >= t).astype(int)) for t in (0.1, 0.3, 0.6, 0.8, 1.0)]
    assert problem.cut(problem.rounded(x)) == min(tried)
    assert problem.rounded(x)[:9].all()
    assert not problem.rounded(x)[18:].any()


@each_of(
    ("edges", "terminals", "free", "labels"),
    [
        # a line with a terminal at every second vertex: the largest share
        ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], {0: 0, 2: 1, 4: 2},
         {1: [0.2, 0.5, 0.3], 3: [0.1, 0.2, 0.7], 5: [0.1, 0.3, 0.6]}, [0, 1, 1, 2, 2, 2]),
        # a star of vertices whose shares say nothing; label 1, the heaviest, is joined twice
        ([(0, 3), (1, 3), (1, 4), (2, 3), (3, 4), (3, 5), (4, 5)], {0: 0, 1: 1, 2: 2},
         {3: [0.33, 0.33, 0.34], 4: [0.34, 0.33, 0.33], 5: [0.33, 0.33, 0.34]},
         [0, 1, 2, 1, 1, 1]),
    ],
)  # fmt: skip
def test_several_labels_are_rounded_to_the_largest_share_or_the_heaviest(
    edges, terminals, free, labels
):
    heads, tails = np.array(edges).T
    problem = GraphCuts(Graph(heads, tails, np.ones(len(edges)), 6, terminals, 3))
    x = problem.initial(0)["x"]
    for vertex, shares in free.items():
        x[vertex] = shares
    assert problem.rounded(x).tolist() == labels
    assert problem.measures({"x": x})["cut"] == 2


def test_at_zeros_and_ones_the_objective_is_the_cut():
    """Of the square 0-1-2-3-0 with these weights; 0 has label 0 and 2 label 1."""
    heads, tails, weights = np.arange(4), np.array([1, 2, 3, 0]), np.arange(1.0, 5.0)
    problem = GraphCuts(Graph(heads, tails, weights.astype(np.float32), 4, {0: 0, 2: 1}, 2))
    for middle, expected in (([0, 0], 5.0), ([1, 0], 4.0), ([0, 1], 6.0), ([1, 1], 5.0)):
        x = np.array([[0], middle[:1], [1], middle[1:]], np.float32)
        assert problem.measures({"x": x}) == {"objective": expected, "cut": expected}


@pytest.mark.parametrize("name", ["svm", "logistic", "least-squares"])
def test_real_rows_are_learned_from_a_file_with_a_fifth_validation(digits, name, tmp_path):
    path = digits[2]
    if name == "least-squares":  # which takes labels as they are
        signs = re.sub("^0", "-1", re.sub("^2", "1", path.read_text(), flags=re.M), flags=re.M)
        path = tmp_path / "signs.svm"
        path.write_text(signs)
    config = ClassicConfig(data=str(path), lr=0.02, workers=2)
    problem, again = create(name, config), create(name, config)
    assert (problem.train.n_rows, problem.test.n_rows) == (1438, 359)
    assert problem.test.values.tolist() == again.test.values.tolist()
    measures = train(problem, config).measures
    assert measures["train_error"] < 0.15
    assert measures["test_error"] < 0.2


def test_numbers_as_labels_are_for_least_squares_only(tmp_path):
    path = tmp_path / "rows.svm"
    path.write_text("0.5 1:1\n7 1:2\n-3 2:1\n")
    problem = create("least-squares", ClassicConfig(data=str(path)))
    assert "train_error" not in problem.measures(problem.initial(0))
    with pytest.raises(DataError, match=r"has 3 labels \(-3, 0.5, 7\); wanted two"):
        create("svm", ClassicConfig(data=str(path)))


def test_a_tenth_of_the_ratings_is_validation_and_nothing_is_in_both():
    data = netflix_like(20_000)
    parts = hold_out(data, seed=0)
    assert parts[1].n_entries == data.n_entries // 10
    pairs = [part.users.astype(np.int64) * data.n_items + part.items for part in parts]
    assert (np.diff(np.sort(np.concatenate(pairs))) > 0).all()
    assert parts[0].n_users == parts[1].n_users == data.n_users


def test_ratings_from_files_are_completed(tmp_path):
    lines = (f"{u} {10 * v} {1 + (u + v) % 5}\n" for u in range(12) for v in range(8))
    (tmp_path / "ratings").write_text("".join(lines))
    config = ClassicConfig(data=str(tmp_path / "ratings"), rank=6, epochs=2)
    problem = create("matrix-completion", config)
    assert problem.about == "87 ratings of 8 items by 12 users, rank 6"
    assert problem.measures(problem.initial(0)).keys() == {"objective", "train_error", "test_error"}


def test_the_karate_club_is_cut_at_its_maximum_flow(tmp_path):
    """Zachary's club split between instructor (0) and officer (33), as networkx ships it."""
    import networkx  # while this runs, and not while tests are collected

    club, path = networkx.karate_club_graph(), tmp_path / "club.txt"
    path.write_text("".join(f"{u} {v} {w}\n" for u, v, w in club.edges(data="weight")))
    flow, _ = networkx.minimum_cut(club, 0, 33, capacity="weight")
    config = ClassicConfig(data=str(path), terminals="0=0,33=1", workers=2)
    assert train(create("graph-cuts", config), config).measures["cut"] == flow
