"""Generated ratings and graphs have the statistics of the published sets and recorded draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from mlxhog.classic.datasets import Graph
from mlxhog.classic.generators import abdomen_like, dblife_like, netflix_like
from tests.classic.pair_problems import cut_grid
from tests.tolerances import FITTED_STATISTIC, RECORDED_F32, assert_close

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
RECORDED = json.loads((HERE.parent / "golden/hogwild/classic_reference.json").read_text())
ABDOMEN = json.loads((HERE / "abdomen_like.json").read_text())


@pytest.fixture(scope="module")
def ratings():
    return netflix_like()


def delta_and_rho(first, second):
    """Largest share of examples with one row, and largest share that meet one example.

    Of pairs: all that have its first or its second row, less those that have both.
    """
    n = len(first)
    degrees = np.bincount(first), np.bincount(second)
    pairs, times = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    meeting = degrees[0][pairs[0]] + degrees[1][pairs[1]] - times
    return max(map(np.max, degrees)) / n, meeting.max() / n


def test_netflix_like_is_as_sparse_as_netflix(ratings):
    delta, rho = delta_and_rho(ratings.users, ratings.items)
    assert_close(ratings.n_entries, 1.909e6, FITTED_STATISTIC)
    assert_close(delta, 2.30e-3, FITTED_STATISTIC)
    assert_close(rho, 2.47e-3, FITTED_STATISTIC)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (lambda data: data.ratings.mean(), 3.57),
        (lambda data: data.ratings.std(), 0.96),
        (
            lambda data: np.bincount(data.ratings.astype(int), minlength=6)[1:] / data.n_entries,
            [0.019, 0.109, 0.330, 0.368, 0.174],
        ),
        # Median over mean of Netflix's own films and users.
        (lambda data: busy(data.items), 561 / 5655),
    ],
    ids=["mean", "sd", "histogram", "median film"],
)
def test_netflix_like_grades_and_films_are_distributed_as_netflix(ratings, statistic, expected):
    assert_close(statistic(ratings), expected, FITTED_STATISTIC)


def busy(rows):
    """Median over mean of how often rows occur."""
    times = np.bincount(rows)
    return np.median(times) / times.mean()


def test_netflix_like_has_each_pair_once(ratings):
    pairs = ratings.users.astype(np.int64) * ratings.n_items + ratings.items
    assert len(np.unique(pairs)) == ratings.n_entries


def test_a_smaller_netflix_like_has_fewer_users_and_films():
    small = netflix_like(20_000, seed=3)
    assert (small.n_users, small.n_items) == (1518, 562)
    assert 14_000 < small.n_entries <= 20_000
    again = netflix_like(20_000, seed=3)
    np.testing.assert_array_equal(small.ratings, again.ratings)
    assert not np.array_equal(small.users[:100], netflix_like(20_000, seed=4).users[:100])


def test_dblife_like_has_the_published_row():
    graph = dblife_like()
    assert (graph.n_vertices, graph.n_edges) == (18_167, 180_110)
    degrees = np.bincount(np.concatenate([graph.heads, graph.tails]))
    # Two edges meet at the busiest vertices; that they have both ends in common hardly counts.
    assert_close(degrees.max() / graph.n_edges, 4.35e-3, FITTED_STATISTIC)
    meeting = (degrees[graph.heads] + degrees[graph.tails] - 1).max()
    assert_close(meeting / graph.n_edges, 8.64e-3, FITTED_STATISTIC)


def test_dblife_like_shows_a_tenth_of_labels_that_its_edges_respect():
    graph = dblife_like()
    assert set(graph.terminals.values()) == set(range(8))
    assert 0.09 < len(graph.terminals) / graph.n_vertices < 0.11
    shown = np.full(graph.n_vertices, -1)
    shown[list(graph.terminals)] = list(graph.terminals.values())
    known = (shown[graph.heads] >= 0) & (shown[graph.tails] >= 0)
    together = shown[graph.heads] == shown[graph.tails]
    assert 0.94 < together[known].mean() < 0.97  # 95 %, and 1 in 8 of those gone astray


def test_the_grid_of_the_recorded_cut_is_drawn_as_recorded():
    graph, expected = cut_grid(), RECORDED["cut_grid8"]
    assert graph.n_edges == expected["edges"]
    assert set(graph.weights) == set(range(1, 11))
    degrees = np.bincount(np.concatenate([graph.heads, graph.tails]))
    assert_close(degrees.max() / graph.n_edges, expected["delta"], RECORDED_F32)
    meeting = (degrees[graph.heads] + degrees[graph.tails] - 1).max()
    assert_close(meeting / graph.n_edges, expected["rho"], RECORDED_F32)


def maximum_flow_of(graph: Graph, scale: int) -> float:
    """The largest flow from label 1 to label 0, capacities in whole parts of 1 / scale."""
    source, sink = graph.n_vertices, graph.n_vertices + 1
    known = np.array(list(graph.terminals.items()))
    ones, zeros = known[known[:, 1] == 1, 0], known[known[:, 1] == 0, 0]
    capacity = np.round(graph.weights.astype(np.float64) * scale).astype(np.int32)
    unlimited = np.full(len(known), np.iinfo(np.int32).max // len(known), dtype=np.int32)
    heads = [graph.heads, graph.tails, np.full(len(ones), source), zeros]
    tails = [graph.tails, graph.heads, ones, np.full(len(zeros), sink)]
    values = np.concatenate([capacity, capacity, unlimited])
    places = np.concatenate(heads), np.concatenate(tails)
    network = coo_array((values, places), shape=(sink + 1, sink + 1)).tocsr()
    return maximum_flow(network, source, sink).flow_value / scale


def test_the_recorded_grid_has_the_maximum_flow_347():
    assert maximum_flow_of(cut_grid(), 1) == RECORDED["cut_grid8"]["maxflow"] == 347


@pytest.mark.parametrize("side", sorted(map(int, ABDOMEN["sides"])))
def test_abdomen_like_is_the_recorded_volume(side):
    graph, expected = abdomen_like(side), ABDOMEN["sides"][str(side)]
    assert graph.n_edges == expected["edges"] == 3 * side**2 * (side - 1)
    assert_close(graph.weights.sum(dtype=float), expected["weight"], RECORDED_F32)
    flow = maximum_flow_of(graph, ABDOMEN["capacity_scale"])
    assert_close(flow, expected["maximum_flow"], RECORDED_F32)


def test_a_vertex_of_abdomen_like_has_six_neighbours_at_most():
    graph = abdomen_like(8)
    degrees = np.bincount(np.concatenate([graph.heads, graph.tails]))
    assert degrees.max() == 6
    assert set(graph.terminals.values()) == {0, 1}
