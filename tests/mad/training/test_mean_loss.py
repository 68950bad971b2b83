"""Every step counts for the evaluation that comes after it."""

import math

from mlxhog.mad.training.evaluation import MeanLoss


def test_the_mean_is_that_of_the_steps_since_the_evaluation_before() -> None:
    mean = MeanLoss()
    for loss in (1.0, 2.0, math.nan, math.inf):
        mean.add(loss)
    assert mean.pop() == 1.5
    assert math.isnan(mean.pop())


def test_steps_that_came_while_another_worker_evaluated_count_for_the_next() -> None:
    mean = MeanLoss()
    for at, loss in ((10, 1.0), (30, 5.0), (20, 3.0)):
        mean.add(loss, at)
    assert mean.pop(until_ns=20) == 2.0
    assert mean.pop(until_ns=40) == 5.0
