"""What a run of a classic problem refuses, and how it ends when the step size is too large."""

from dataclasses import replace

import pytest

from mlxhog.classic import problems
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.run import train
from mlxhog.errors import ConfigError
from tests.classic.small import hinge
from tests.pairs import each_of

PROBLEM = hinge(n=50, d=30)


@each_of(
    ("options", "message"),
    [
        ({"workers": 51}, "--workers 51, but small-svm has 50 examples in mini-batches of 1"),
        ({"workers": 8, "batch_size": 10}, "at most --workers 5"),
        ({"batch_size": 51}, "--batch-size 51 is more than the 50 examples"),
        ({"scheme": "serial", "workers": 2}, "serial has one worker, not 2"),
        ({"scheme": "aig", "write": "racy"}, "--write racy is for --scheme hogwild, not aig"),
        ({"component_batch": 9}, "is for --scheme cyclades, not hogwild"),
        ({"scheme": "cyclades", "batch_size": 4}, "add --batch-size 1"),
        ({"hot": 10, "write": "racy"}, "--hot 10 is for --write hot-cold"),
        ({"backoff_epochs": 2}, "--backoff-epochs 2 is for --schedule backoff or inverse"),
        ({"schedule": "inverse", "beta": 0.9}, "--beta 0.9 is for --schedule geometric or backoff"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_the_way_out(options, message):
    with pytest.raises(ConfigError, match=message):
        train(PROBLEM, ClassicConfig(**options))


@each_of(
    ("name", "options", "message"),
    [
        ("svn", {}, "no problem 'svn'; did you mean 'svm'"),
        ("svm", {"rank": 5}, "--rank 5 is for matrix-completion, not svm"),
        ("graph-cuts", {"lam": 0.5}, "--lam 0.5 is for svm or .*, not graph-cuts"),
        ("svm", {"labels": "0=-1"}, "--labels 0=-1 is for --data FILE, not generated data"),
        ("graph-cuts", {"data": "x"}, "x has no labels; give the known ones"),
        ("svm", {"data": "x.svm", "size": 10}, "--size 10 is for generated data"),
    ],
)
def test_a_problem_or_an_option_that_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        problems.create(name, ClassicConfig(**options))


def test_a_way_to_write_that_the_problem_lacks_is_refused():
    rows = replace(PROBLEM, defaults=replace(PROBLEM.defaults, writes=("lossless", "racy")))
    with pytest.raises(ConfigError, match="no --write hot-cold; it has lossless and racy"):
        train(rows, ClassicConfig(write="hot-cold"))


def test_a_step_size_that_diverges_is_stopped_with_a_smaller_one_to_try():
    result = train(PROBLEM, ClassicConfig(workers=2, lr=1e6, epochs=1000))
    assert (result.status, len(result.epochs) < 20) == ("diverged", True)
    assert result.advice.endswith("with --lr 1e+06; try --lr 0.1")
