"""The problem graph-cuts: its rounding, its reference values, and every scheme on it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic import problems
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import Graph
from mlxhog.classic.generators import abdomen_like
from mlxhog.classic.problems.cuts import GraphCuts
from mlxhog.classic.run import train
from tests.classic.pair_problems import clusters, cut_grid
from tests.tolerances import CUT_NEAR_SERIAL, RECORDED_F32, assert_close

HERE = Path(__file__).parent
RECORDED = json.loads((HERE.parent / "golden/hogwild/classic_reference.json").read_text())
GRID = RECORDED["cut_grid8"]
ABDOMEN = json.loads((HERE / "abdomen_like.json").read_text())
STEPS = {"lr": 0.02, "beta": 0.97, "epochs": 100}


def square(weights, **terminals):
    """Vertices 0-1-2-3-0 with these weights; 0 has label 0 and 2 label 1."""
    return Graph(
        heads=np.array([0, 1, 2, 3]),
        tails=np.array([1, 2, 3, 0]),
        weights=np.array(weights, np.float32),
        n_vertices=4,
        terminals={0: 0, 2: 1},
        labels=2,
    )


# -- reference values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "write", "workers"),
    [
        ("hogwild", "lossless", 2),
        ("hogwild", "racy", 4),
        ("aig", "auto", 1),
        ("round_robin", "auto", 2),
        ("sync", "auto", 2),
    ],
)
def test_every_scheme_rounds_the_recorded_grid_to_its_maximum_flow(scheme, write, workers):
    # A turn per edge would make the test one of the system's scheduler.
    batch = {"round_robin": 32, "sync": 128}.get(scheme, 1)
    steps = STEPS | {"batch_size": batch, "lr": STEPS["lr"] * batch}
    config = ClassicConfig(scheme=scheme, write=write, workers=workers, **steps)
    measures = train(GraphCuts(cut_grid()), config).measures
    assert measures["cut"] == GRID["maxflow"]
    # Serial is at 383.0 by then.
    assert GRID["maxflow"] < measures["objective"] < 400


@pytest.mark.parametrize("side", [8, 16])
def test_serial_sgd_on_abdomen_like_repeats_the_recorded_trace(side):
    expected = ABDOMEN["sides"][str(side)]
    run = train(GraphCuts(abdomen_like(side)), ClassicConfig(scheme="serial"))
    for number, measures in expected["trace"].items():
        for name, value in measures.items():
            assert_close(run.epochs[int(number) - 1].measures[name], value, RECORDED_F32)


def test_several_workers_cut_several_labels_as_serial_does():
    problem = GraphCuts(clusters(400, 3000, labels=5))
    steps = {"lr": 0.05, "beta": 0.9, "epochs": 20}
    serial = train(problem, ClassicConfig(scheme="serial", **steps))
    assert serial.objective < 0.8 * serial.epochs[0].measures["objective"]
    for write in ("lossless", "racy"):
        run = train(problem, ClassicConfig(write=write, workers=2, **steps))
        assert_close(run.objective, serial.objective, CUT_NEAR_SERIAL)


# -- rounding -------------------------------------------------------------------------------------


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


def test_several_labels_are_rounded_to_the_largest_share():
    # A line 0 - 1 - 2 - 3 - 4 - 5 with a terminal at every second vertex.
    graph = Graph(np.arange(5), np.arange(1, 6), np.ones(5), 6, {0: 0, 2: 1, 4: 2}, 3)
    problem = GraphCuts(graph)
    x = problem.initial(0)["x"]
    x[[1, 3, 5]] = [[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.1, 0.3, 0.6]]
    assert problem.rounded(x).tolist() == [0, 1, 1, 2, 2, 2]
    assert problem.measures({"x": x})["cut"] == 2


def test_where_no_share_is_large_several_labels_are_rounded_to_the_heaviest():
    # A star of free vertices around vertex 3, whose shares say nothing; label 1 is joined twice.
    edges = [(0, 3), (1, 3), (1, 4), (2, 3), (3, 4), (3, 5), (4, 5)]
    heads, tails = np.array(edges).T
    problem = GraphCuts(Graph(heads, tails, np.ones(7), 6, {0: 0, 1: 1, 2: 2}, 3))
    x = problem.initial(0)["x"]
    x[[3, 4, 5]] += np.array([[0, 0, 0.01], [0.01, 0, 0], [0, 0, 0.01]], np.float32)
    assert problem.rounded(x).tolist() == [0, 1, 2, 1, 1, 1]
    assert problem.measures({"x": x})["cut"] == 2


def test_at_zeros_and_ones_the_objective_is_the_cut():
    problem = GraphCuts(square([1, 2, 3, 4]))
    for middle, expected in (([0, 0], 5.0), ([1, 0], 4.0), ([0, 1], 6.0), ([1, 1], 5.0)):
        x = np.array([[0], middle[:1], [1], middle[1:]], np.float32)
        assert problem.measures({"x": x}) == {"objective": expected, "cut": expected}


# -- data -----------------------------------------------------------------------------------------


def test_the_karate_club_is_cut_at_its_maximum_flow(tmp_path):
    """Zachary's club split between instructor (0) and officer (33), as networkx ships it."""
    import networkx  # while this runs, and not while tests are collected

    club = networkx.karate_club_graph()
    path = tmp_path / "club.txt"
    path.write_text("".join(f"{u} {v} {w}\n" for u, v, w in club.edges(data="weight")))
    flow, _ = networkx.minimum_cut(club, 0, 33, capacity="weight")
    config = ClassicConfig(data=str(path), terminals="0=0,33=1", workers=2)
    assert train(problems.create("graph-cuts", config), config).measures["cut"] == flow
