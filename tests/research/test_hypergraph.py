"""Omega, Delta, rho and conflict of a data set, exactly and from a sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mlxhog.research.hypergraph import Hypergraph
from tests.pairs import each_of, max_examples

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/tiny_hypergraph.json").read_text())
EDGES = {"A": [[0, 1], [1, 2], [3, 4], [4, 5, 6]], "B": [[0, 1, 2], [2, 3], [3, 4], [5]]}
N = 43


def sampled(edges, n):
    """The hypergraph of a sample, whose edges are rows of bits."""
    masks = np.zeros((len(edges), n), bool)
    for mask, edge in zip(masks, edges, strict=True):
        mask[list(edge)] = True
    return Hypergraph.of_bitmaps(np.packbits(masks, axis=1, bitorder="little"), n)


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_worked_examples_are_exact(name):
    recorded = GOLDEN[name]
    graph = Hypergraph.of_lists(EDGES[name], recorded["n"])
    assert len(graph) == recorded["m"]
    assert graph.omega == recorded["omega"]
    assert graph.degrees.tolist() == recorded["deg"]
    assert graph.delta == recorded["delta"]
    assert graph.edge_degrees.tolist() == recorded["edge_degree"]
    assert graph.rho == recorded["rho"]
    assert graph.p_conf == recorded["p_conf"]


@given(st.lists(st.sets(st.integers(0, N - 1), max_size=8), min_size=1, max_size=40))
@max_examples(300)
def test_edges_are_counted_as_by_comparing_every_pair_and_rho_is_bounded(edges):
    exact = Hypergraph.of_lists([sorted(edge) for edge in edges], N)
    for graph in (exact, sampled(edges, N)):
        assert graph.sizes.tolist() == [len(edge) for edge in edges]
        assert graph.degrees.tolist() == [sum(v in edge for edge in edges) for v in range(N)]
        assert graph.edge_degrees.tolist() == [sum(bool(a & b) for a in edges) for b in edges]
    busiest = int(exact.degrees.max())  # counts: rho <= Omega Delta is an equality now and then
    assert exact.delta <= exact.rho <= 1
    assert exact.edge_degrees.max() <= exact.omega * busiest


@pytest.mark.parametrize("n", [40, 100_003])
def test_many_edges_and_wide_ones_overlap_wherever_they_are(n):
    # Some coordinates in most edges, some in a few, some in none.
    rng = np.random.default_rng(0)
    mask = rng.random((300, 40)) < np.linspace(0, 0.1, 40) ** 2
    places = np.sort(rng.choice(n, 40, replace=False))
    edges = [places[np.flatnonzero(row)] for row in mask]
    expected = ((mask.astype(np.float32) @ mask.T.astype(np.float32)) > 0).sum(axis=1)
    for graph in (Hypergraph.of_lists(edges, n), sampled(edges, n)):
        assert graph.edge_degrees.tolist() == expected.tolist()


@each_of(
    ("edges", "rho", "delta", "p_conf"),
    [([[0], [0], [1], []], 0.5, 0.5, 1 / 6), ([[0, 2]], 1, 1, 0), ([[], []], 0, 0, 0)],
)
def test_pairs_of_examples_are_counted_once_each(edges, rho, delta, p_conf):
    graph = Hypergraph.of_lists(edges, 3)
    assert (graph.rho, graph.delta) == (rho, delta)
    assert graph.p_conf == pytest.approx(p_conf)


def test_the_interval_is_clopper_and_pearsons_of_half_as_many_pairs():
    half = Hypergraph.of_lists([[k % 2] for k in range(40)], 2)
    pairs, (low, high) = 20, half.p_conf_interval
    assert 0 < low < half.p_conf < high < 1
    never = Hypergraph.of_lists([[k] for k in range(40)], 40)
    assert never.p_conf_interval == (0.0, pytest.approx(1 - 0.025 ** (1 / pairs)))
    always = Hypergraph.of_lists([[0]] * 40, 1)
    assert binom.sf(19, pairs, always.p_conf_interval[0]) == pytest.approx(0.025)


def test_a_sample_shows_the_largest_of_its_own_supports():
    some = sampled([[0], [0, 1], [1, 2, 3], []], 4)
    assert (some.omega, some.delta) == (3, 0.5)
    assert some.sampled_rho == pytest.approx(2 / 3)
    assert some.p_conf == pytest.approx(2 / 6)
    dense = sampled([range(1000)] * 64, 1000)
    assert (dense.omega, dense.delta, dense.sampled_rho, dense.p_conf) == (1000, 1.0, 1.0, 1.0)
