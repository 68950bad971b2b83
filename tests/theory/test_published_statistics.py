"""Sparsity of the generated data sets, counted over all their examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog.classic.generators import dblife_like, netflix_like, rcv1_like, svm100
from mlxhog.classic.problem import pair_supports
from mlxhog.theory.hypergraph import Hypergraph
from tests.tolerances import FITTED_STATISTIC, assert_close

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "hogwild"


def p_conf_of_independent(q: np.ndarray) -> float:
    """P(two supports meet) where coordinates are in a support independently: 1 - prod(1 - q^2)."""
    return float(1 - np.prod(1 - np.square(q)))


def of_pairs(first: NDArray[np.int32], second: NDArray[np.int32], n: int) -> Hypergraph:
    """The graph whose edges join `first` to `second`."""
    return Hypergraph(*pair_supports(first, second), n)


def test_text_like_rcv1_conflicts_almost_everywhere() -> None:
    rows = rcv1_like()
    graph = Hypergraph(rows.indptr, rows.indices, rows.n_features)
    assert_close(graph.sizes.mean(), 79, FITTED_STATISTIC)
    assert_close(graph.omega, 677, FITTED_STATISTIC)
    assert_close(graph.delta, 0.42, FITTED_STATISTIC)
    assert_close(graph.rho, 0.9995, FITTED_STATISTIC)
    assert_close(graph.p_conf, 0.91, FITTED_STATISTIC)
    q = graph.degrees / len(graph)
    assert_close(p_conf_of_independent(q), 0.989, FITTED_STATISTIC)
    assert p_conf_of_independent(q) > graph.p_conf  # short rows conflict less


def test_ratings_like_netflixs_conflict_at_the_busiest_film_and_user() -> None:
    ratings = netflix_like()
    graph = of_pairs(
        ratings.users, ratings.n_users + ratings.items, ratings.n_users + ratings.n_items
    )
    assert_close(graph.delta, 2.30e-3, FITTED_STATISTIC)
    assert_close(graph.rho, 2.47e-3, FITTED_STATISTIC)


def test_mentions_like_dblifes_conflict_at_both_ends() -> None:
    graph = dblife_like()
    mentions = of_pairs(graph.heads, graph.tails, graph.n_vertices)
    assert_close(mentions.delta, 4.35e-3, FITTED_STATISTIC)
    assert_close(mentions.rho, 8.64e-3, FITTED_STATISTIC)


def test_a_fifth_of_a_hundred_features_is_not_sparse() -> None:
    recorded = json.loads((GOLDEN / "classic_reference.json").read_text())["svm100"]
    rows, _ = svm100()
    graph = Hypergraph(rows.indptr, rows.indices, rows.n_features)
    assert graph.omega == recorded["omega"]
    assert graph.delta == recorded["delta"]
    assert graph.rho == recorded["rho"]
    assert graph.p_conf == recorded["p_conf"]
