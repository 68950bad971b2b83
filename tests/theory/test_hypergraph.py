"""Omega, Delta, rho and conflict of a data set, exactly and from a sample."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mlxhog import _native
from mlxhog.theory.hypergraph import Hypergraph, Supports
from tests.pairs import each_of, max_examples

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/tiny_hypergraph.json").read_text())
EDGES = {"A": [[0, 1], [1, 2], [3, 4], [4, 5, 6]], "B": [[0, 1, 2], [2, 3], [3, 4], [5]]}


def hypergraphs(n, most):
    """Hypergraphs of up to 40 edges with some of n coordinates, of which an edge has the most."""
    edges = st.lists(st.sets(st.integers(0, n - 1), max_size=most), min_size=1, max_size=40)
    return edges.map(lambda sets: Hypergraph.from_lists([sorted(one) for one in sets], n))


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_worked_examples_are_exact(name):
    recorded = GOLDEN[name]
    graph = Hypergraph.from_lists(EDGES[name], recorded["n"])
    assert len(graph) == recorded["m"]
    assert graph.omega == recorded["omega"]
    assert graph.degrees.tolist() == recorded["deg"]
    assert graph.delta == recorded["delta"]
    assert graph.edge_degrees.tolist() == recorded["edge_degree"]
    assert graph.rho == recorded["rho"]
    assert graph.p_conf == recorded["p_conf"]


@given(st.one_of(hypergraphs(30, 6), hypergraphs(6, 2)))  # graphs of parallel edges, too
@max_examples(300)
def test_edge_degrees_equal_those_of_comparing_every_pair_and_rho_is_bounded(graph):
    spans = zip(graph.indptr[:-1], graph.indptr[1:], strict=True)
    edges = [set(graph.indices[start:stop].tolist()) for start, stop in spans]
    assert graph.edge_degrees.tolist() == [sum(bool(a & b) for b in edges) for a in edges]
    busiest = int(graph.degrees.max())  # counts: rho <= Omega Delta is an equality now and then
    assert graph.delta <= graph.rho <= 1
    assert graph.edge_degrees.max() <= graph.omega * busiest


def test_edges_are_met_across_the_blocks_of_the_native_count():
    # Some coordinates in most edges, some in a few, some in none, over three blocks of 8192 edges.
    rng = np.random.default_rng(0)
    mask = rng.random((17_000, 40)) < np.linspace(0, 0.1, 40) ** 2
    graph = Hypergraph.from_lists([np.flatnonzero(row) for row in mask], 40)
    some = rng.integers(0, len(mask), 500)
    expected = ((mask[some].astype(np.float32) @ mask.T.astype(np.float32)) > 0).sum(axis=1)
    assert (graph.edge_degrees[some] == expected).all()


@each_of(
    ("edges", "rho", "delta", "p_conf"),
    [([[0], [0], [1], []], 0.5, 0.5, 1 / 6), ([[0, 2]], 1, 1, 0), ([[], []], 0, 0, 0)],
)
def test_pairs_of_examples_are_counted_once_each(edges, rho, delta, p_conf):
    graph = Hypergraph.from_lists(edges, 3)
    assert (graph.rho, graph.delta) == (rho, delta)
    assert graph.p_conf == pytest.approx(p_conf)


class Interrupted(Exception):
    pass


def test_a_long_count_stops_at_the_next_signal():
    def interrupt(number, frame):
        raise Interrupted

    edges = 100_000  # 13 blocks, which all meet in one coordinate
    met = np.zeros(edges, np.int64)
    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        signal.setitimer(signal.ITIMER_PROF, 2e-3)
        with pytest.raises(Interrupted):
            _native.edge_degrees(np.arange(edges + 1), np.zeros(edges, np.int32), 1, met)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert met.max() < edges


@each_of(
    ("indptr", "indices", "message"),
    [
        ([0, 1], [5], "outside"),
        ([0, 2], [0], "number of indices"),
        ([0, 2, 1], [0], "fall"),
        ([0, 1, 1], [0], "met has 1"),
    ],
)
def test_the_native_count_refuses_what_would_leave_its_arrays(indptr, indices, message):
    met = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=message):
        _native.edge_degrees(np.array(indptr), np.array(indices, np.int32), 5, met)


# -- a sample as bitmaps --------------------------------------------------------------------------

N = 43
sets = st.lists(st.sets(st.integers(0, N - 1)), max_size=12)


def of_masks(masks):
    """Supports of boolean rows, (samples, n)."""
    return Supports(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])


def of_lists(supports, n):
    """Supports of coordinates in [0, n), in any order."""
    masks = np.zeros((len(supports), n), bool)
    for mask, support in zip(masks, supports, strict=True):
        mask[list(support)] = True
    return of_masks(masks)


@given(sets, sets)
def test_sizes_counts_and_meetings_are_those_of_the_sets(samples, others):
    supports = of_lists(samples, N)
    assert supports.sizes.tolist() == [len(sample) for sample in samples]
    assert supports.counts.tolist() == [sum(v in sample for sample in samples) for v in range(N)]
    meetings = supports.meetings(of_lists(others, N))
    assert meetings.tolist() == [sum(bool(a & b) for b in others) for a in samples]


def test_meetings_are_counted_wherever_they_are():
    n = 100_003
    one = of_lists([[n - 1], [5_000]], n)
    assert one.meetings(of_lists([[0, n - 1], [n - 2]], n)).tolist() == [1, 0]


def test_the_interval_is_clopper_and_pearsons_of_half_as_many_pairs():
    half = of_lists([[k % 2] for k in range(40)], 2)
    pairs, (low, high) = 20, half.p_conf_interval
    assert 0 < low < half.p_conf < high < 1
    never = of_lists([[k] for k in range(40)], 40)
    assert never.p_conf_interval == (0.0, pytest.approx(1 - 0.025 ** (1 / pairs)))
    assert binom.sf(19, pairs, of_lists([[0]] * 40, 1).p_conf_interval[0]) == pytest.approx(0.025)


def test_a_sample_shows_the_largest_of_its_own_supports():
    some = of_lists([[0], [0, 1], [1, 2, 3], []], 4)
    assert (some.omega, some.delta) == (3, 0.5)
    assert some.rho == pytest.approx(2 / 3)
    assert some.p_conf == pytest.approx(2 / 6)
    dense = of_masks(np.ones((64, 1000), bool))
    assert (dense.omega, dense.delta, dense.rho, dense.p_conf) == (1000, 1.0, 1.0, 1.0)
