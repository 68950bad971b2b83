"""A run of a classic problem: what its strategies promise, through spawned workers."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.research.classic import problems
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.generators import netflix_like
from mlxhog.research.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.research.classic.problems.cuts import GraphCuts
from mlxhog.research.classic.run import (
    MIN_PROBE_UPDATES,
    epoch_order,
    learning_rate,
    probe_interval,
    train,
)
from tests.pairs import each_of
from tests.research.classic.pair_problems import clusters
from tests.research.classic.small import hinge
from tests.tolerances import (
    CLASSIC_NEAR_SERIAL,
    COMPLETION_NEAR_SERIAL,
    CUT_NEAR_SERIAL,
    assert_close,
)

SERIAL = ClassicConfig(strategy="serial")


def same(a, b):
    return all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


CASES = {  # how it is made, steps and workers of its runs, and their distance from serial
    "svm": (hinge, {"epochs": 12}, 3, CLASSIC_NEAR_SERIAL),
    "ratings": (lambda: MatrixCompletion(*hold_out(netflix_like(20_000), seed=0), rank=5), {}, 3,
                COMPLETION_NEAR_SERIAL),
    "cut": (lambda: GraphCuts(clusters(400, 3000, labels=5)),
            {"lr": 0.05, "beta": 0.9, "epochs": 20}, 2, CUT_NEAR_SERIAL),
}  # fmt: skip


@cache
def problem_and_serial(name, batch):
    make, steps, *_ = CASES[name]
    problem = make()
    return problem, train(problem, replace(SERIAL, **steps, batch_size=batch))


RACY, LOSSLESS, AIG = {"write": "racy"}, {"write": "lossless"}, {"strategy": "aig"}
HOT_COLD = {"write": "hot-cold", "hot": 32, "period": 16}  # its tail is racy
TURN = 8  # examples; a turn for each would make these tests some of the system's scheduler


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("svm", RACY), ("svm", LOSSLESS), ("svm", HOT_COLD),
        ("svm", AIG), ("svm", {"strategy": "round_robin", "batch_size": TURN}),
        ("svm", {"strategy": "sync", "batch_size": TURN}),
        ("ratings", RACY), ("ratings", AIG), ("cut", RACY), ("cut", LOSSLESS),
    ],
    ids=str,
)  # fmt: skip
def test_several_workers_come_near_to_serial_and_the_probe_counts_what_they_lose(name, options):
    _, steps, workers, near = CASES[name]
    gradients = workers if options.get("strategy") == "sync" else 1  # of an update
    problem, serial = problem_and_serial(name, gradients * options.get("batch_size", 1))
    assert serial.objective < 0.9 * serial.initial["objective"]
    result = train(problem, ClassicConfig(workers=workers, **steps, **options))
    assert_close(result.objective, serial.objective, near)
    most = result.probe_updates - 1 if options in (RACY, HOT_COLD) else 0
    assert 0 <= result.lost_updates <= most
    assert problem.measures(result.params) == result.measures  # the probe's round moves none
    if name == "svm" and options != HOT_COLD:
        assert result.probe_updates == problem.n_examples


def test_the_probe_is_raised_as_often_as_the_busiest_shared_coordinate():
    many = hinge(n=20_000)
    degrees = np.bincount(many.train.indices, minlength=many.train.n_features)
    assert degrees[32] > MIN_PROBE_UPDATES
    assert probe_interval(many.supports()) == round(20_000 / degrees.max())
    assert probe_interval(many.supports(), private=32) == round(20_000 / degrees[32:].max())
    assert probe_interval(many.supports(), private=many.train.n_features) is None


# -- orders and learning rates
# -------------------------------------------------------------------------


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
def test_learning_rates_of_epochs_follow_the_schedule(options, expected):
    config = ClassicConfig(**options)
    sizes = [learning_rate(config, 1.0, 0.8, epoch) for epoch in range(1, 1 + len(expected))]
    assert sizes == pytest.approx(expected)


FEW = hinge(n=50, d=30)


@each_of(
    ("options", "message"),
    [
        ({"workers": 8, "batch_size": 10}, "at most --workers 5"),
        ({"batch_size": 51}, "--batch-size 51 is more than the 50 examples"),
        ({"strategy": "serial", "workers": 2}, "serial has one worker, not 2"),
        ({"strategy": "aig", "write": "racy"}, "--write racy is for strategy=hogwild, .* is aig"),
        ({"strategy": "cyclades", "batch_size": 4}, "add --batch-size 1"),
        ({"hot": 10, "write": "racy"}, "--hot 10 is for write=hot-cold"),
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
        ("graph-cuts", {"lam": 0.5}, "--lam 0.5 is for .*, and problem is graph-cuts; leave it"),
        ("graph-cuts", {"terminals": "0=0"}, "--terminals 0=0 is for data=file, and data is gen"),
        ("graph-cuts", {"data": "x"}, "x has no labels; give the known ones"),
        ("svm", {"data": "x.svm", "size": 10}, "--size 10 is for data=generated"),
    ],
)
def test_a_problem_or_an_option_that_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        problems.create(name, ClassicConfig(**options))
