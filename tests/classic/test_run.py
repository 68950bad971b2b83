"""A run of a classic problem: what its schemes promise, through spawned workers."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.classic import problems
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.run import (
    LEAST_PROBE_UPDATES,
    compare,
    epoch_order,
    probe_interval,
    step_size,
    train,
)
from mlxhog.errors import ConfigError
from tests.classic.small import hinge
from tests.pairs import each_of
from tests.tolerances import CLASSIC_NEAR_SERIAL

PROBLEM = hinge()
SERIAL = ClassicConfig(scheme="serial")
HOGWILD = [{"write": "racy"}, {"write": "lossless"}, {"write": "hot-cold", "hot": 32, "period": 16}]
OTHERS = [{"scheme": "aig"}, {"scheme": "round_robin"}, {"scheme": "sync"}]
TURN = 8  # examples; a turn for each would make these tests some of the system's scheduler


def same(a, b):
    return all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


@each_of("options", [HOGWILD[2], OTHERS[0]])  # tests/classic/test_native.py has all kinds
def test_one_worker_of_any_scheme_is_serial_bit_for_bit(options):
    assert same(train(PROBLEM, ClassicConfig(workers=1, **options)), train(PROBLEM, SERIAL))


@pytest.mark.parametrize(
    "options",
    [HOGWILD[0], HOGWILD[2], {"scheme": "aig"}, {"scheme": "round_robin", "batch_size": TURN}],
    ids=str,
)
def test_three_workers_come_near_to_serial(options):
    result, reference = compare(PROBLEM, ClassicConfig(workers=3, epochs=12, **options))
    apart = abs(result.objective - reference.objective)
    assert apart < CLASSIC_NEAR_SERIAL.of_largest * reference.objective


@pytest.mark.parametrize("options", [HOGWILD[0], HOGWILD[1], *OTHERS], ids=str)
def test_the_probe_counts_lost_updates_and_leaves_the_parameters_as_they_are(options):
    result = train(PROBLEM, ClassicConfig(workers=2, epochs=1, **options))
    assert result.probe_updates == PROBLEM.n_examples
    most = result.probe_updates - 1 if options == HOGWILD[0] else 0
    assert 0 <= result.lost_updates <= most
    assert PROBLEM.measures(result.params) == result.measures


def test_the_probe_is_raised_as_often_as_the_busiest_shared_coordinate():
    many = hinge(n=20_000)
    degrees = np.bincount(many.train.indices, minlength=many.train.n_features)
    assert degrees[32] > LEAST_PROBE_UPDATES
    assert probe_interval(many.supports()) == round(20_000 / degrees.max())
    assert probe_interval(many.supports(), private=32) == round(20_000 / degrees[32:].max())
    assert probe_interval(many.supports(), private=many.train.n_features) is None


# -- orders and step sizes -------------------------------------------------------------------------


def test_an_order_is_a_shuffle_or_draws_that_leave_a_share_of_one_over_e_out():
    first, second = (epoch_order(1000, 0, epoch, "shuffle") for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(1000, 0, 1, "shuffle"))
    drawn = epoch_order(10_000, 0, 1, "replacement")
    assert drawn.dtype == np.int32
    assert 0 <= drawn.min() <= drawn.max() < 10_000
    left_out = 1 - len(np.unique(drawn)) / 10_000
    assert abs(left_out - np.exp(-1)) < 0.02  # three standard deviations are .0092


@each_of(
    ("options", "expected"),
    [
        ({}, [1.0, 0.8, 0.64, 0.512]),
        ({"beta": 0.5}, [1.0, 0.5, 0.25, 0.125]),
        ({"schedule": "backoff"}, [1.0, 0.37, 0.37, 0.37, 0.37**2]),  # stages of 1, 2.7, 7.3 epochs
        ({"schedule": "backoff", "beta": 0.5, "backoff_epochs": 2}, [1, 1, *[0.5] * 4, 0.25]),
        ({"schedule": "inverse", "backoff_epochs": 2}, [1.0, 2 / 3, 0.5, 0.4]),
    ],
)
def test_step_sizes_of_epochs_follow_the_schedule(options, expected):
    config = ClassicConfig(**options)
    sizes = [step_size(config, 1.0, 0.8, epoch) for epoch in range(1, 1 + len(expected))]
    assert sizes == pytest.approx(expected)


# -- what is refused -------------------------------------------------------------------------------

FEW = hinge(n=50, d=30)


@each_of(
    ("options", "message"),
    [
        ({"workers": 51}, "--workers 51, but small-svm has 50 examples in mini-batches of 1"),
        ({"workers": 8, "batch_size": 10}, "at most --workers 5"),
        ({"batch_size": 51}, "--batch-size 51 is more than the 50 examples"),
        ({"scheme": "serial", "workers": 2}, "serial has one worker, not 2"),
        ({"scheme": "aig", "write": "racy"}, "--write racy is for scheme=hogwild, .* is aig"),
        ({"component_batch": 9}, "is for scheme=cyclades, and scheme is hogwild"),
        ({"scheme": "cyclades", "batch_size": 4}, "add --batch-size 1"),
        ({"hot": 10, "write": "racy"}, "--hot 10 is for write=hot-cold"),
        ({"backoff_epochs": 2}, r"--backoff-epochs 2 is for schedule=backoff\|inverse"),
        ({"schedule": "inverse", "beta": 0.9}, r"--beta 0.9 is for schedule=geometric\|backoff"),
        ({"write": "hot-cold"}, "no --write hot-cold; it has lossless and racy"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_the_way_out(options, message):
    defaults = replace(FEW.defaults, writes=("lossless", "racy"))
    with pytest.raises(ConfigError, match=message):
        train(replace(FEW, defaults=defaults), ClassicConfig(**options))


@each_of(
    ("name", "options", "message"),
    [
        ("svn", {}, "no problem 'svn'; did you mean 'svm'"),
        ("svm", {"rank": 5}, "--rank 5 is for problem=matrix-completion, and problem is svm"),
        ("graph-cuts", {"lam": 0.5}, "--lam 0.5 is for .*, and problem is graph-cuts; leave it"),
        ("graph-cuts", {"terminals": "0=0"}, "--terminals 0=0 is for data=file, and data is gen"),
        ("svm", {"data": "x", "terminals": "0=0"}, "--terminals 0=0 is for problem=graph-cuts"),
        ("graph-cuts", {"data": "x"}, "x has no labels; give the known ones"),
        ("svm", {"data": "x.svm", "size": 10}, "--size 10 is for data=generated"),
    ],
)
def test_a_problem_or_an_option_that_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        problems.create(name, ClassicConfig(**options))


def test_a_step_size_that_diverges_is_stopped_with_a_smaller_one_to_try():
    result = train(FEW, ClassicConfig(workers=2, lr=1e6, epochs=1000))
    assert (result.status, len(result.epochs) < 20) == ("diverged", True)
    assert result.advice.endswith("with --lr 1e+06; try --lr 0.1")
