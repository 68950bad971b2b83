"""A run of a classic problem: what its schemes promise, through spawned workers."""

import numpy as np
import pytest

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.run import (
    LEAST_PROBE_UPDATES,
    compare,
    epoch_order,
    probe_interval,
    step_sizes,
    train,
)
from tests.classic.small import hinge
from tests.tolerances import CLASSIC_NEAR_SERIAL

PROBLEM = hinge()
SERIAL = ClassicConfig(scheme="serial")
HOGWILD = [
    {"write": "racy"},
    {"write": "lossless"},
    {"write": "hot-cold", "hot": 32, "period": 16},
]
SCHEMES = [
    *HOGWILD,
    {"scheme": "aig"},
    {"scheme": "round_robin"},
    {"scheme": "sync"},
]
TURN = 8  # examples; a turn for each would make these tests some of the system's scheduler


@pytest.fixture(scope="module")
def serial():
    return train(PROBLEM, SERIAL)


def same(a, b):
    return all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_one_worker_of_any_scheme_is_serial_bit_for_bit(serial, options):
    assert same(train(PROBLEM, ClassicConfig(workers=1, **options)), serial)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["round_robin", "sync"])
def test_three_workers_repeat_themselves_bit_for_bit(scheme):
    config = ClassicConfig(workers=3, scheme=scheme, epochs=2, batch_size=TURN)
    first, again = train(PROBLEM, config), train(PROBLEM, config)
    assert same(first, again)
    assert first.objective == again.objective


def near(result, reference):
    apart = abs(result.objective - reference.objective)
    return apart < CLASSIC_NEAR_SERIAL.of_largest * reference.objective


@pytest.mark.parametrize(
    "options",
    [HOGWILD[0], HOGWILD[2], {"scheme": "aig"}, {"scheme": "round_robin", "batch_size": TURN}],
    ids=str,
)
def test_three_workers_come_near_to_serial(options):
    assert near(*compare(PROBLEM, ClassicConfig(workers=3, epochs=12, **options)))


@pytest.mark.parametrize(
    "options",
    [{"write": "lossless"}, {"scheme": "aig"}, {"scheme": "round_robin"}, {"scheme": "sync"}],
    ids=str,
)
def test_the_probe_finds_no_lost_update_where_none_may_be_lost(options):
    result = train(PROBLEM, ClassicConfig(workers=2, epochs=1, **options))
    assert result.lost_updates == 0
    assert result.probe_updates == PROBLEM.n_examples


def test_the_probe_of_a_racy_run_counts_what_is_missing():
    result = train(PROBLEM, ClassicConfig(workers=2, write="racy", epochs=1))
    assert 0 <= result.lost_updates < result.probe_updates


def test_the_probe_is_raised_as_often_as_the_busiest_shared_coordinate():
    many = hinge(n=20_000)
    degrees = np.bincount(many.train.indices, minlength=many.train.n_features)
    assert degrees[32] > LEAST_PROBE_UPDATES
    assert probe_interval(many.supports()) == round(20_000 / degrees.max())
    assert probe_interval(many.supports(), private=32) == round(20_000 / degrees[32:].max())
    assert probe_interval(many.supports(), private=many.train.n_features) is None


def test_the_probe_leaves_the_parameters_as_they_are():
    """With round_robin a run repeats itself, so what is measured must be what is returned."""
    result = train(PROBLEM, ClassicConfig(workers=2, scheme="round_robin"))
    assert PROBLEM.measures(result.params) == result.measures


# -- orders and shares -----------------------------------------------------------------------------


def test_a_shuffle_has_every_example_once_and_differs_between_epochs():
    first, second = (epoch_order(1000, 0, epoch, "shuffle") for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(1000, 0, 1, "shuffle"))


def test_draws_with_replacement_leave_a_share_of_one_over_e_out():
    drawn = epoch_order(10_000, 0, 1, "replacement")
    assert drawn.dtype == np.int32
    assert 0 <= drawn.min() <= drawn.max() < 10_000
    left_out = 1 - len(np.unique(drawn)) / 10_000
    assert abs(left_out - np.exp(-1)) < 0.02  # three standard deviations are .0092


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 0.8, 0.64, 0.512]),
        ({"beta": 0.5}, [1.0, 0.5, 0.25, 0.125]),
        ({"schedule": "backoff"}, [1.0, 0.37, 0.37, 0.37, 0.37**2]),  # stages of 1, 2.7, 7.3 epochs
        ({"schedule": "backoff", "beta": 0.5, "backoff_epochs": 2}, [1, 1, *[0.5] * 4, 0.25]),
        ({"schedule": "inverse", "backoff_epochs": 2}, [1.0, 2 / 3, 0.5, 0.4]),
    ],
    ids=str,
)
def test_step_sizes_of_epochs_follow_the_schedule(options, expected):
    step_size = step_sizes(ClassicConfig(**options), lr=1.0, beta=0.8)
    assert [step_size(epoch) for epoch in range(1, 1 + len(expected))] == pytest.approx(expected)
