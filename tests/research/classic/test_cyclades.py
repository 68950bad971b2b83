"""Parallel steps whose result is that of serial ones."""

import numpy as np
import pytest

from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.cyclades import ComponentSummary, components, divide
from mlxhog.research.classic.generators import netflix_like
from mlxhog.research.classic.problems.completion import MatrixCompletion, hold_out
from mlxhog.research.classic.run import train
from tests.research.classic.small import hinge
from tests.research.classic.test_run import SERIAL, same


def supports(*edges):
    indptr = np.cumsum([0, *map(len, edges)]).astype(np.int64)
    return indptr, np.concatenate([*map(np.asarray, edges), []]).astype(np.int32), 10


def partition(labels):
    return sorted(np.flatnonzero(labels == one).tolist() for one in np.unique(labels))


def test_components_are_what_is_connected_by_common_coordinates():
    graph = supports([0, 1], [2], [1, 3], [4, 5], [], [3])
    every = np.arange(6, dtype=np.int32)
    assert partition(components(graph, every)) == [[0, 2, 5], [1], [3], [4]]
    some = np.array([5, 3, 5, 0], np.int32)  # 2 is not among them, so 0 and 5 do not meet
    assert partition(components(graph, some)) == [[0, 2], [1], [3]]
    assert partition(components(supports([], []), every[:2])) == [[0], [1]]


def test_components_go_whole_and_in_order_to_whoever_has_least_to_do():
    labels = np.array([3, 0, 3, 1, 0, 3, 2], np.int32)
    shares = divide(labels, 2)
    assert [share.tolist() for share in shares] == [[0, 2, 5, 6], [1, 3, 4]]
    summary = ComponentSummary()
    summary.add(labels, shares)
    assert (summary.largest, summary.speedup) == (3, 7 / 4)


SVM = hinge(n=500, d=4000, row=4)
RATINGS = MatrixCompletion(*hold_out(netflix_like(3000, 900, 700), seed=0), rank=4)


def told(problem, **options):
    """A run's result and its messages."""
    messages = []
    config = ClassicConfig(strategy="cyclades", workers=2, **options)
    result = train(problem, config, lambda progress: messages.append(progress.message))
    return result, list(filter(None, messages))


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (SVM, {"component_batch": 100}),
        (SVM, {"sampling": "replacement"}),
        (RATINGS, {"component_batch": 64, "epochs": 2, "batch_size": 1}),
    ],
    ids=["svm", "with replacement", "matrix completion"],
)
def test_two_workers_are_serial_bit_for_bit(problem, options):
    serial = {name: value for name, value in options.items() if name != "component_batch"}
    reference = train(problem, ClassicConfig(strategy="serial", **serial))
    result, messages = told(problem, **options)
    assert same(result, reference)
    examples, expected = ([epoch.examples for epoch in r.epochs] for r in (result, reference))
    assert examples == expected
    assert len(messages) == 1
    assert "2 workers are up to" in messages[0]


def test_where_all_conflict_one_component_is_told_and_is_serial():
    dense = hinge(n=60, d=8, row=8)
    result, messages = told(dense)
    assert same(result, train(dense, SERIAL))
    assert "the largest component of a batch of 60 examples has 60:" in messages[0]
