"""Rows have the distributions of the tasks' descriptions, or of the references' generators.

The numbers of the references were drawn once on a CPU: 40,000 rows of HazyResearch/zoology at
d88d6f5 with T 64 and V 128; of facebookresearch/PhysicsLM4 at 7580696, 20,000 rows of Depo with
N 8, K 5, M 6 and names of one token, and 40,000 expressions of Mano with p 7, L 4 and + - *.
"""

import math

import numpy as np
import pytest

from mlxhog.mad.tasks import IGNORED, make_task
from mlxhog.mad.tasks.selective_grammar import NOT_ALLOWED
from tests.pairs import each_of


def with_answer(x, y):
    return np.concatenate([x, y[:, -1:]], axis=1)


@pytest.mark.parametrize("seq_len", [32, 128])
def test_a_row_scores_as_many_values_as_keys_repeat(seq_len):
    data = make_task("CR", seq_len=seq_len, train_rows=1, test_rows=2560)
    n, K = seq_len // 2 - 1, 8
    expected = n - K * (1 - (1 - 1 / K) ** n) + 1
    scored = (data.test_y != IGNORED).sum(1)
    assert abs(scored.mean() - expected) < 5 * scored.std() / math.sqrt(len(scored)) + 1e-3


def test_some_pairs_are_noise_and_one_never_is():
    data = make_task("NR", seq_len=4, frac_noise=0.99, train_rows=512, test_rows=1)
    assert (data.train_x[:, :2] < 16).all()  # the only pair before the last
    data = make_task("NR", frac_noise=0.8, train_rows=1024, test_rows=256)
    for x, y in data.splits().values():
        tokens = with_answer(x, y)[:, :-2].reshape(len(x), -1, 2)
        noisy = tokens[..., 0] >= 16
        assert abs(noisy.mean() - 0.8 * (1 - 1 / 63)) < 0.02
    assert (noisy == (tokens[..., 1] >= 16)).all()
    assert (data.test_y[:, :-1:2][noisy] == IGNORED).all()


def test_noise_is_two_tokens_drawn_apart_each_as_likely():
    data = make_task("NR", noise_vocab=2, frac_noise=0.8, train_rows=2048, test_rows=1)
    pairs = with_answer(data.train_x, data.train_y).reshape(-1, 2)
    task_rows = pairs[pairs[:, 0] >= 30] - 30
    counts = np.bincount(2 * task_rows[:, 0] + task_rows[:, 1], minlength=4)
    assert abs(counts / counts.sum() - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / counts.sum())


@pytest.mark.parametrize("task", ["CR", "NR"])
def test_the_last_query_is_any_key_of_the_row_however_often_it_was_shown(task):
    data = make_task(task, seq_len=32, train_rows=4096, test_rows=1)
    K, places, times = 8, [], []
    for *shown, asked, _ in with_answer(data.train_x, data.train_y):
        counts = np.bincount([key for key in shown[::2] if key < K], minlength=K)
        keys = np.flatnonzero(counts)
        places.append((keys.tolist().index(asked) + 0.5) / len(keys) - 0.5)
        times.append(counts[asked] - counts.sum() / len(keys))
    for centred in (np.array(places), np.array(times)):
        assert abs(centred.mean()) < 5 * centred.std() / math.sqrt(len(centred))


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


FEW = {"train_rows": 256, "test_rows": 130}


def walked(data, row):
    """States of a training row by the grammar, one token at a time, and which are held."""
    state, states, held = 0, [], []
    for token in data.train_x[row]:
        after = data.grammar[state, token]
        held.append(bool(after == NOT_ALLOWED))
        state = state if held[-1] else int(after)
        states.append(state)
    return states, held


def test_the_share_of_distractors_and_of_allowed_letters_is_the_chosen_one():
    data = make_task("SG", vocab=401, depth=20, gap_prob=0.25, density=0.3, **FEW)
    assert abs((data.grammar[1:, 1:] != NOT_ALLOWED).mean() - 0.3) < 0.02
    assert abs((data.grammar[1:, 0] != NOT_ALLOWED).mean() - 0.3 / 20) < 0.02
    held = np.array([walked(data, row)[1] for row in range(256)])
    assert abs(held[:, 1:][~held[:, :-1]].mean() - 0.25) < 0.02
    assert not np.array(
        [walked(make_task("SG", gap_prob=0, **FEW), row)[1] for row in (0, 9)]
    ).any()


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


def test_without_random_fill_only_pairs_and_queries_are_there():
    data = make_task("MQAR", train_rows=200, test_rows=130)
    assert ((data.train_x != 0).sum(1) == 3 * 4).all()


def test_brackets_reach_every_depth_up_to_the_limit():
    data = make_task("Dyck", kinds=3, depth=5, train_rows=20, test_rows=4, test_length=200)
    depths = np.where(data.test_x < 3, 1, -1).cumsum(1)
    assert set(depths.ravel().tolist()) == set(range(6))
