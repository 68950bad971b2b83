"""Depo and Mano: right answers, the statistics of the reference's generators, the invariants.

The numbers of the reference are from facebookresearch/PhysicsLM4 at 7580696, drawn once on a CPU:
20,000 rows of Depo with N 8, K 5, M 6 and names of one token; 40,000 expressions of Mano with p 7,
L 4 and the operations + - *.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import IGNORED, Dataset, check, make_task, resolve
from tests.pairs import each_of

SMALL = {"train_rows": 600, "test_rows": 150, "val_rows": 130}
DEPO = {"hops": 5, "queries": 6, "vocab": 40}
MANO = {"operations": 4, "vocab": 20, "seq_len": 96}
NEAR = 0.02
"""About five standard deviations of a share of 10,000 draws."""


def shares(values, low: int, high: int) -> np.ndarray:
    return np.bincount(np.asarray(values) - low, minlength=high - low) / len(values)


def whole(data: Dataset, split: str, row: int) -> list[int]:
    """The tokens of a row, with the answer that is only a target."""
    x, y = (part[row].tolist() for part in data.splits()[split])
    return [*x, data.meta["vocab_size"] - 1 if y[-1] == IGNORED else y[-1]]


def depo_row(text: list[int], names: int, edge: int):
    """Edges, and queries (hops, start, answer, place of the answer), of a row."""
    first = next(at for at, token in enumerate(text) if names <= token < names + 5)
    edges = [tuple(text[at + edge - 2 : at + edge]) for at in range(1, first, edge)]
    queries, at = [], first
    while at < len(text) and text[at] != text[0]:
        queries.append((text[at] - names + 1, text[at + 1], text[at + 3], at + 3))
        at += 4
    return dict(edges), queries


@each_of("marked", [True, False])
@each_of("split", ["train", "test", "val"])
def test_an_answer_of_depo_is_as_many_edges_from_its_start_as_the_query_says(split, marked):
    data = make_task("depo", **DEPO, **SMALL, marked=marked)
    _, y = data.splits()[split]
    for row in range(len(y)):
        after, queries = depo_row(whole(data, split, row), 40 - 5 - 3, 2 + marked)
        for hops, node, answer, place in queries:
            for _ in range(hops):
                node = after[node]
            assert node == answer == y[row, place - 1]
        assert len({start for _, start, _, _ in queries}) == len(queries) == min(len(after), 6)
        assert (y[row] != IGNORED).sum() == len(queries)


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


def mano_value(text: list[int], at: int, p: int) -> tuple[int, int, int, int | None]:
    """Value, end and operations of the expression at a place, and those of its first part."""
    if text[at] < p:
        return text[at], at + 1, 0, None
    a, middle, before, _ = mano_value(text, at + 1, p)
    b, end, after, _ = mano_value(text, middle, p)
    return (a + b, a - b, a * b)[text[at] - p] % p, end, before + after + 1, before


def mano_row(text: list[int], p: int):
    """Problems of a row: operations, those of the first part, value, answer, its place."""
    problems, at = [], 0
    while at + 1 < len(text) and text[at + 1] != text[0]:
        result, end, size, first = mano_value(text, at + 2, p)
        assert text[at + 1] == p + 2 + size
        problems.append((size, first, result, text[end + 1], end + 1))
        at = end + 2
    return problems


@each_of("split", ["train", "test", "val"])
def test_an_answer_of_mano_is_the_value_of_its_expression(split):
    data = make_task("mano", **MANO, **SMALL)
    _, y = data.splits()[split]
    for row in range(len(y)):
        problems = mano_row(whole(data, split, row), 7)
        for _, _, result, answer, place in problems:
            assert result == answer == y[row, place - 1]
        assert (y[row] != IGNORED).sum() == len(problems) > 0


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


ACCEPTED = [
    ("depo", {}),
    ("depo", {"marked": False, "nodes": 5, "hops": 7, "queries": 2}),
    ("depo", {"nodes": 3, "hops": 1, "queries": 1, "vocab": 7, "seq_len": 13}),
    ("depo", {"nodes": 180, "hops": 99, "queries": 2, "vocab": 300, "seq_len": 548}),
    ("mano", {}),
    ("mano", {"operations": 10, "modulus": 23, "vocab": 64, "seq_len": 24}),
    ("mano", {"operations": 1, "modulus": 2, "vocab": 8, "seq_len": 6}),
]


@each_of(("task", "settings"), ACCEPTED)
def test_our_rows_are_accepted_and_follow_from_the_seed(task, settings):
    for seed in (0, 1):
        data = make_task(task, seed=seed, **SMALL, **settings)
        findings = check(data)
        assert findings.ok, [str(failure) for failure in findings.failures]
        again = make_task(task, seed=seed, **SMALL, **settings)
        np.testing.assert_array_equal(data.train_x, again.train_x)
        other = make_task(task, seed=2, **SMALL, **settings)
        assert not np.array_equal(data.train_x, other.train_x)


def put(at: int, token: int) -> Callable[[Dataset], None]:
    def change(data: Dataset) -> None:
        data.train_x[5, at] = token

    return change


def target(data: Dataset) -> None:
    at = int(np.argmax(data.train_y[5] != IGNORED))
    data.train_y[5, at] = (data.train_y[5, at] + 1) % 7


def answer(data: Dataset) -> None:
    at = int(np.argmax(data.train_y[5] != IGNORED))
    data.train_x[5, at + 1] = data.train_y[5, at] = (data.train_y[5, at] + 1) % 7


def smaller_test_cycle(data: Dataset) -> None:
    row = next(n for n in range(600) if data.train_x[n, 10] >= 27)  # a query begins there
    data.test_x[5], data.test_y[5] = data.train_x[row], data.train_y[row]


def another_cycle(data: Dataset) -> None:
    data.train_x[5, 3] = next(name for name in range(27) if name not in data.train_x[5])


def start_twice(data: Dataset) -> None:
    at = int(np.argmax(data.train_y[5] != IGNORED)) - 1
    data.train_x[5, at : at + 4] = data.train_x[5, at + 4 : at + 8]
    data.train_y[5, at + 1] = data.train_y[5, at + 5]


def operation_for_a_number(data: Dataset) -> None:
    data.train_x[5, 2] = 15 - 6 if data.train_x[5, 2] < 7 else 0


def longer_in_test(data: Dataset) -> None:
    data.test_x[5], data.test_y[5] = data.train_x[5], data.train_y[5]


@each_of(
    ("task", "rule", "change", "message"),
    [
        ("depo", 30, put(0, 3), "token 3 at 0; expected the begin marker 31"),
        ("depo", 30, put(1, 3), "token 3 at 1"),
        ("depo", 30, put(2, 29), "at 2; expected"),
        ("depo", 30, smaller_test_cycle, "[3-7] edges before the queries, expected 8..8"),
        ("depo", 31, another_cycle, "are not one cycle through all of their nodes"),
        ("depo", 32, answer, "have answer .*, expected"),
        ("depo", 32, start_twice, "from a node that no other query has"),
        ("depo", 32, target, "target .* at .*, expected"),
        ("mano", 33, put(0, 3), "expected 15, a length of 1..2 operations"),
        ("mano", 33, put(1, 14), "expected 15, a length of 1..2 operations"),
        ("mano", 33, put(63, 3), "or fewer than 9 begin markers at the end"),
        ("mano", 33, longer_in_test, "a length of 2..2 operations"),
        ("mano", 34, operation_for_a_number, "is not one of that many operations in prefix form"),
        ("mano", 35, answer, "; its answer is"),
        ("mano", 35, target, "target .* at .*, expected"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_the_rule(task, rule, change, message):
    data = make_task(task, seed=3, **SMALL)
    change(data)
    failure = check(data).failures[0]
    assert (failure.rule, failure.row) == (rule, 5)
    assert re.search(message, failure.message)


@each_of(
    ("task", "settings", "message"),
    [
        ("depo", {"vocab": 12}, "8 names beside 2 hops and three markers: at least 13"),
        ("depo", {"queries": 9}, "a row has 8 nodes, .*: at most 8"),
        ("depo", {"seq_len": 55}, "8 edges of 3 tokens and 8 queries of 4: at least 56"),
        ("depo", {"nodes": 2}, "at least 3"),
        ("depo", {"hops": 0}, "at least 1"),
        ("mano", {"vocab": 13}, "7 numbers, .* 2 lengths and two markers: at least 14"),
        ("mano", {"seq_len": 7}, "a problem of 2 operations, .*: at least 8"),
        ("mano", {"modulus": 1}, "at least 2"),
        ("mano", {"operations": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused_with_the_possible_values(
    task, settings, message
):
    with pytest.raises(ConfigError, match=message):
        resolve(task, settings)
