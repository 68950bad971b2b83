"""Multi-query recall has the distributions of its reference."""

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import IGNORED, make_task
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
