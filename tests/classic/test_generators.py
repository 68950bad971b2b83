"""Generated data have the statistics of the published sets, and the recorded draws."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic.generators import abdomen_like, netflix_like, rcv1_like
from mlxhog.classic.problem import pair_supports
from mlxhog.theory.hypergraph import Hypergraph
from tests.classic.pair_problems import cut_grid
from tests.classic.small import row_of
from tests.tolerances import FITTED_STATISTIC, RECORDED_F32, assert_close

HERE = Path(__file__).parent
RECORDED = json.loads((HERE.parent / "golden/hogwild/classic_reference.json").read_text())
ABDOMEN = json.loads((HERE / "abdomen_like.json").read_text())

# -- rows -----------------------------------------------------------------------------------------


def meeting(rows, number):
    """The share of rows that have a feature in common with one of them."""
    marked = np.zeros(rows.n_features, bool)
    marked[row_of(rows, number)[0]] = True
    return float(np.logical_or.reduceat(marked[rows.indices], rows.indptr[:-1]).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "published"),
    [
        (lambda lengths, rows: lengths.mean(), 79),
        (lambda lengths, rows: np.median(lengths), 66),
        (lambda lengths, rows: lengths.max(), 677),
        (lambda lengths, rows: rows.degrees().max() / rows.n_rows, 0.42),
        (lambda lengths, rows: meeting(rows, int(lengths.argmax())), 0.9995),
        (lambda lengths, rows: np.square(rows.degrees() / rows.n_rows).sum(), 4.49),
    ],
    ids=["mean length", "median length", "omega", "delta", "rho", "sum of q^2"],
)
def test_rcv1_like_has_the_statistics_of_rcv1(text, statistic, published):
    value = statistic(np.diff(text.indptr), text)
    assert_close(value, published, FITTED_STATISTIC)


# -- pairs ----------------------------------------------------------------------------------------


def sparsity(first, second):
    """Largest share of examples with one row, and largest share that meet one example."""
    graph = Hypergraph(*pair_supports(first, second), int(max(first.max(), second.max())) + 1)
    return graph.delta, graph.rho


@pytest.mark.slow
def test_netflix_like_is_as_sparse_as_netflix(netflix):
    assert_close(netflix.n_entries, 1.909e6, FITTED_STATISTIC)
    delta, rho = sparsity(netflix.users, netflix.n_users + netflix.items)
    assert_close(delta, 2.30e-3, FITTED_STATISTIC)
    assert_close(rho, 2.47e-3, FITTED_STATISTIC)


def test_a_smaller_netflix_like_has_fewer_users_and_films_and_equal_seeds_give_equal_data():
    small = netflix_like(20_000, seed=3)
    assert (small.n_users, small.n_items) == (1518, 562)
    assert 14_000 < small.n_entries <= 20_000
    again = netflix_like(20_000, seed=3)
    np.testing.assert_array_equal(small.ratings, again.ratings)
    assert not np.array_equal(small.users[:100], netflix_like(20_000, seed=4).users[:100])
    assert rcv1_like(50, seed=3).values.tolist() == rcv1_like(50, seed=3).values.tolist()
    assert rcv1_like(50, seed=3).values.tolist() != rcv1_like(50, seed=4).values.tolist()


def test_the_grid_of_the_recorded_cut_is_drawn_as_recorded():
    graph, expected = cut_grid(), RECORDED["cut_grid8"]
    assert graph.n_edges == expected["edges"]
    assert set(graph.weights) == set(range(1, 11))
    delta, rho = sparsity(graph.heads, graph.tails)
    assert_close(delta, expected["delta"], RECORDED_F32)
    assert_close(rho, expected["rho"], RECORDED_F32)


@pytest.mark.parametrize("side", sorted(map(int, ABDOMEN["sides"])))
def test_abdomen_like_is_the_recorded_volume(side):
    graph, expected = abdomen_like(side), ABDOMEN["sides"][str(side)]
    assert graph.n_edges == expected["edges"] == 3 * side**2 * (side - 1)
    assert_close(graph.weights.sum(dtype=float), expected["weight"], RECORDED_F32)
