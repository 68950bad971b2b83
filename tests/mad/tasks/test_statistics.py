"""Rows have the distributions of the tasks' descriptions, or of the references' generators.

The numbers of the references were drawn once on a CPU: 40,000 rows of HazyResearch/zoology at
d88d6f5 with T 64 and V 128; of facebookresearch/PhysicsLM4 at 7580696, 20,000 rows of Depo with
N 8, K 5, M 6 and names of one token, and 40,000 expressions of Mano with p 7, L 4 and + - *.
"""

import numpy as np
import pytest

from mlxhog.mad.tasks import IGNORED, make_task
from tests.pairs import each_of

DEPO = {"hops": 5, "queries": 6, "vocab": 40}
MANO = {"operations": 4, "vocab": 20, "seq_len": 96}
NEAR = 0.02
"""About five standard deviations of a share of 10,000 draws."""


def shares(values, low, high):
    return np.bincount(np.asarray(values) - low, minlength=high - low) / len(values)


def whole(data, split, row):
    """The tokens of a row, with the answer that is only a target."""
    x, y = (part[row].tolist() for part in data.splits()[split])
    return [*x, data.meta["vocab_size"] - 1 if y[-1] == IGNORED else y[-1]]


def depo_row(text, names, edge):
    """Edges, and queries (hops, start, answer, place of the answer), of a row."""
    first = next(at for at, token in enumerate(text) if names <= token < names + 5)
    edges = [tuple(text[at + edge - 2 : at + edge]) for at in range(1, first, edge)]
    queries, at = [], first
    while at < len(text) and text[at] != text[0]:
        queries.append((text[at] - names + 1, text[at + 1], text[at + 3], at + 3))
        at += 4
    return dict(edges), queries


def test_depo_has_the_statistics_of_the_reference():
    rows = {"train": 10_000, "test": 2_000}
    data = make_task("depo", **DEPO, train_rows=rows["train"], test_rows=rows["test"])
    sizes, hops, tested, gaps = [], [], [], []
    for split, row in [(split, row) for split, n in rows.items() for row in range(n)]:
        after, queries = depo_row(whole(data, split, row), 32, 3)
        sizes += [len(after)] if split == "train" else []
        (hops if split == "train" else tested).extend(hop for hop, *_ in queries)
        if split == "test":
            assert (len(after), len(queries)) == (8, 6)
            (node, last), gap = list(after)[:2], 0
            while node != last:
                node, gap = after[node], gap + 1
            gaps.append(gap)
    expected = [0.2309, 0.1923, 0.1704, 0.1524, 0.1345, 0.1196]
    np.testing.assert_allclose(shares(sizes, 3, 9), expected, atol=NEAR)
    np.testing.assert_allclose(shares(hops, 1, 6), [0.2] * 5, atol=NEAR)
    np.testing.assert_allclose(shares(tested, 1, 6), [0.25, 0.25, 0, 0.25, 0.25], atol=NEAR)
    np.testing.assert_allclose(shares(gaps, 1, 8), [1 / 7] * 7, atol=2 * NEAR)


def mano_value(text, at, p):
    """Value, end and operations of the expression at a place, and those of its first part."""
    if text[at] < p:
        return text[at], at + 1, 0, None
    a, middle, before, _ = mano_value(text, at + 1, p)
    b, end, after, _ = mano_value(text, middle, p)
    return (a + b, a - b, a * b)[text[at] - p] % p, end, before + after + 1, before


def mano_row(text, p):
    """Problems of a row: operations, those of the first part, value, answer, its place."""
    problems, at = [], 0
    while at + 1 < len(text) and text[at + 1] != text[0]:
        result, end, size, first = mano_value(text, at + 2, p)
        assert text[at + 1] == p + 2 + size
        problems.append((size, first, result, text[end + 1], end + 1))
        at = end + 2
    return problems


def test_mano_has_the_statistics_of_the_reference():
    data = make_task("mano", **MANO, train_rows=5_000, test_rows=1_500)
    rows = [mano_row(whole(data, "train", row), 7) for row in range(5_000)]
    tested = [one for n in range(1_500) for one in mano_row(whole(data, "test", n), 7)]
    lengths = [row[0][0] for row in rows]  # of the first problem: a later one may not fit
    np.testing.assert_allclose(shares(lengths, 1, 5), [0.25] * 4, atol=2 * NEAR)
    assert {size for size, *_ in tested} == {4}
    firsts = [first for _, first, *_ in tested]
    np.testing.assert_allclose(shares(firsts, 0, 4), [0.2556, 0.2485, 0.2535, 0.2424], atol=NEAR)
    for size, zeros in enumerate((0.1775, 0.1927, 0.2037, 0.2123), 1):
        results = [result for row in rows for n, _, result, *_ in row if n == size]
        assert np.mean(np.array(results) == 0) == pytest.approx(zeros, abs=NEAR)


REFERENCE_ROWS = 40_000
REFERENCE = (
    (
        {},
        [6.160, 6.837, 7.436, 8.104],
        [7.261, 7.420, 7.479, 7.581],
        0.2504,
    ),
    (
        {"n_pairs": 8},
        [5.385, 5.950, 6.622, 7.184, 7.735, 8.293, 8.875, 9.346],
        [6.256, 6.361, 6.482, 6.513, 6.512, 6.553, 6.539, 6.488],
        0.2617,
    ),
    (
        {"n_pairs": 8, "power_a": 0.5},
        [8.514, 8.758, 8.961, 9.141, 9.345, 9.600, 9.805, 10.003],
        [7.025, 7.017, 7.041, 7.018, 7.013, 6.977, 6.965, 6.941],
        0.1194,
    ),
)
"""Settings; mean and deviation of each key's place, and the share of first keys in the first place.

Of rows that HazyResearch/zoology at d88d6f5 draws with T 64 and V 128.
"""


def places(data, P):
    """The place of each key's query (n, P), in the order of the pairs."""
    x, y = data.train_x, data.train_y
    at = np.nonzero(y != IGNORED)[1].reshape(-1, P)
    asked = np.take_along_axis(x, at, 1)
    same = asked[:, None, :] == x[:, 0 : 2 * P : 2, None]
    return (np.where(same, at[:, None, :], 0).sum(2) - 2 * P) / 2


@each_of(("settings", "means", "deviations", "first"), REFERENCE)
def test_queries_lie_where_those_of_the_reference_lie(settings, means, deviations, first):
    n = 20_000
    data = make_task("MQAR", vocab=128, seq_len=64, train_rows=n, test_rows=1, **settings)
    own = places(data, len(means))
    spread = np.sqrt(1 / n + 1 / REFERENCE_ROWS)
    assert (abs(own.mean(0) - means) < 5 * spread * np.array(deviations)).all()
    assert abs(own.std(0) - deviations).max() < 0.15
    assert abs((own[:, 0] == 0).mean() - first) < 5 * spread * 0.5
