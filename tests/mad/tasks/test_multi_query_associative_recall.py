"""Multi-query recall has the distributions of its reference, and its own invariants."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import IGNORED, Dataset, check, make_task
from tests.pairs import each_of

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


def places(data: Dataset, P: int) -> np.ndarray:
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


def test_every_key_is_queried_once_and_answered_where_it_stands():
    P = 4
    data = make_task("mqar", n_pairs=P, seq_len=32, train_rows=200, test_rows=8)
    for x, y in zip(data.train_x, data.train_y, strict=True):
        pairs = dict(zip(x[: 2 * P : 2], x[1 : 2 * P : 2], strict=True))
        queried = {x[at]: y[at] for at in np.flatnonzero(y != IGNORED)}
        assert len(pairs) == (y != IGNORED).sum() == P
        assert queried == pairs
        assert all(at >= 2 * P and at % 2 == 0 for at in np.flatnonzero(y != IGNORED))


def test_without_random_fill_only_pairs_and_queries_are_there():
    data = make_task("MQAR", train_rows=200, test_rows=130)
    assert ((data.train_x != 0).sum(1) == 3 * 4).all()
    assert check(data).ok


@each_of(
    "settings",
    [
        {"vocab": 4, "n_pairs": 1, "seq_len": 4},
        {"vocab": 34, "n_pairs": 16, "seq_len": 64},
        {"vocab": 8192, "n_pairs": 64, "seq_len": 512, "power_a": 1.0, "random_fill": True},
    ],
)
def test_the_least_and_the_largest_settings_are_drawn_and_accepted(settings):
    data = make_task("MQAR", train_rows=256, test_rows=130, **settings)
    findings = check(data)
    assert findings.ok, findings.failures
    assert findings.invariants == [25, 26, 27]


@each_of(
    ("settings", "message"),
    [
        ({"n_pairs": 17}, "an even number, at least 68, or n_pairs at most 16"),
        ({"seq_len": 33}, "an even number, at least 16"),
        ({"n_pairs": 16, "vocab": 33}, "16 values in its second half: at least 34"),
        ({"power_a": 0}, "above 0"),
        ({"power_a": 1.5}, "at most 1"),
    ],
)
def test_settings_that_cannot_be_are_answered_with_what_can_be(settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_task("MQAR", **{"vocab": 128, "seq_len": 64, **settings})
    assert message in str(refusal.value)


def small(**settings) -> Dataset:
    """Rows with pairs at 0..7 and queries at even places from 8 on."""
    return make_task(
        "MQAR", seq_len=32, train_rows=256, test_rows=130, **{"random_fill": True, **settings}
    )


def queries(data: Dataset) -> np.ndarray:
    return np.flatnonzero(data.train_y[5] != IGNORED)


def token_outside(data):
    data.train_x[5, 31] = 64


def value_where_a_key_belongs(data):
    data.train_x[5, 2] = 40


def a_key_twice(data):
    data.train_x[5, 2] = data.train_x[5, 0]


def a_value_twice(data):
    data.train_x[5, 3] = data.train_x[5, 1]


def another_key_is_queried(data):
    own = set(data.train_x[5, 0:8:2])
    data.train_x[5, queries(data)[0]] = next(key for key in range(1, 32) if key not in own)


def a_key_is_queried_twice(data):
    a, b = queries(data)[:2]
    data.train_x[5, a], data.train_y[5, a] = data.train_x[5, b], data.train_y[5, b]


def a_query_is_not_scored(data):
    data.train_y[5, queries(data)[0]] = IGNORED


def targets_at_odd_places(data):
    data.train_x[5, 8:] = np.roll(data.train_x[5, 8:], 1)
    data.train_y[5, 8:] = np.roll(data.train_y[5, 8:], 1)


def value_of_another_key(data):
    a, b = queries(data)[:2]
    data.train_y[5, [a, b]] = data.train_y[5, [b, a]]


@each_of(
    ("rule", "spoil"),
    [
        (25, token_outside),
        (25, value_where_a_key_belongs),
        (25, a_key_twice),
        (25, a_value_twice),
        (26, another_key_is_queried),
        (26, a_key_is_queried_twice),
        (26, a_query_is_not_scored),
        (26, targets_at_odd_places),
        (27, value_of_another_key),
    ],
)
def test_a_spoilt_row_breaks_the_invariant_it_should_and_no_other(rule, spoil):
    data = small()
    spoil(data)
    (failure,) = check(data).failures
    assert (failure.rule, failure.split, failure.row, failure.rows) == (rule, "train", 5, 1)


def test_a_token_between_the_queries_breaks_the_layout_without_random_fill():
    data = small(random_fill=False)
    data.train_x[5, 31] = 3
    assert [failure.rule for failure in check(data).failures] == [26]


def test_rows_of_another_length_break_the_layout():
    data = small()
    longer = replace(data, meta={**data.meta, "seq_len": 34})
    assert {failure.rule for failure in check(longer).failures} == {25}


def longer_gaps(data):
    object.__setattr__(data, "meta", {**data.meta, "power_a": 0.9})


def a_key_less(data):
    data.train_x[data.train_x == 31] = 30


def equal_values_in_every_row(data):
    at = np.nonzero(data.train_y != IGNORED)
    pair = (data.train_x[at].reshape(-1, 4, 1) == data.train_x[:, None, 0:8:2]).argmax(2)
    data.train_x[:, 1:8:2] = 32 + np.arange(4)
    data.train_y[at] = 32 + pair.ravel()


def a_filler_less(data):
    fill = data.train_x[:, 9::2]
    fill[fill == 7] = 8


@each_of(
    ("rule", "spoil"),
    [
        ("place of the first key", longer_gaps),
        ("uniform keys", a_key_less),
        ("uniform values", equal_values_in_every_row),
        ("uniform fillers", a_filler_less),
    ],
)
def test_rows_of_other_distributions_are_noticed(rule, spoil):
    data = make_task("MQAR", random_fill=True, train_rows=4096, test_rows=1)
    spoil(data)
    assert rule in {failure.rule for failure in check(data).failures}
