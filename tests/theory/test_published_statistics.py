"""Sparsity of the generated data sets, counted over all their examples (spec hogwild.md 3, 7)."""

from __future__ import annotations

import json
from pathlib import Path

from mlxhog.classic.generators.rcv1 import rcv1_like
from mlxhog.classic.generators.svm100 import svm100
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.token_rows import p_conf_of_independent
from tests.tolerances import FITTED_STATISTIC, assert_close

GOLDEN = Path(__file__).parents[1] / "golden" / "hogwild"


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


def test_a_fifth_of_a_hundred_features_is_not_sparse() -> None:
    recorded = json.loads((GOLDEN / "classic_reference.json").read_text())["svm100"]
    rows, _ = svm100()
    graph = Hypergraph(rows.indptr, rows.indices, rows.n_features)
    assert graph.omega == recorded["omega"]
    assert graph.delta == recorded["delta"]
    assert graph.rho == recorded["rho"]
    assert graph.p_conf == recorded["p_conf"]
