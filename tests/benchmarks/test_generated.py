"""Generated data of experiments have the published statistics."""

import numpy as np
import pytest

from mlxhog.classic.problem import pair_supports
from mlxhog.theory.hypergraph import Hypergraph
from tests.tolerances import FITTED_STATISTIC, assert_close


@pytest.fixture(scope="module")
def generated(load):
    return load("experiment.generated")


def test_dblife_like_has_the_published_row_and_shows_a_tenth_of_labels(generated):
    graph = generated.dblife_like()
    assert (graph.n_vertices, graph.n_edges) == (18_167, 180_110)
    met = Hypergraph(*pair_supports(graph.heads, graph.tails), graph.n_vertices)
    assert_close(met.delta, 4.35e-3, FITTED_STATISTIC)
    assert_close(met.rho, 8.64e-3, FITTED_STATISTIC)
    assert set(graph.terminals.values()) == set(range(8))
    assert 0.09 < len(graph.terminals) / graph.n_vertices < 0.11
    shown = np.full(graph.n_vertices, -1)
    shown[list(graph.terminals)] = list(graph.terminals.values())
    known = (shown[graph.heads] >= 0) & (shown[graph.tails] >= 0)
    together = shown[graph.heads] == shown[graph.tails]
    assert 0.94 < together[known].mean() < 0.97  # 95 %, and 1 in 8 of those gone astray
