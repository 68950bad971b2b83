"""How old a simulated gradient is: a function of seed and step."""

from collections import Counter

import numpy as np
import pytest

from mlxhog.strategies.staleness import SimulatedStaleness

STEPS = 4000


def ages(text, seed=0):
    course = SimulatedStaleness.parse(text).course(seed)
    return [course.at(step).staleness for step in range(STEPS)]


def test_a_fixed_age_is_that_of_workers_that_apply_in_turn():
    rule = SimulatedStaleness.parse("fixed:2")
    assert (rule.workers, rule.most) == (3, 2)
    course = rule.course(0)
    assert [course.at(step) for step in range(5)] == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("text", "mean", "most"),
    [("uniform:1:5", 3.0, 5), ("geometric:3", 3.0, 25), ("histogram:0=1,4=3", 3.0, 4)],
)
def test_drawn_ages_have_the_requested_mean(text, mean, most):
    drawn = ages(text)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert max(drawn) <= SimulatedStaleness.parse(text).most == most
    assert ages(text) == drawn
    assert ages(text, seed=1) != drawn


def test_an_age_depends_on_no_other_step():
    rule = SimulatedStaleness.parse("uniform:0:9")
    in_order, alone = rule.course(3), rule.course(3)
    assert [in_order.at(step) for step in range(50)][49] == alone.at(49)


def test_speeds_give_each_worker_its_part_and_gradients_a_mean_age_of_p_minus_1():
    rule = SimulatedStaleness.parse("speed:1,1,1,4")
    course = rule.course(0)
    steps = [course.at(number) for number in range(STEPS)]
    shares = Counter(step.worker for step in steps)
    assert shares[0] == pytest.approx(4 * shares[3], rel=0.01)
    assert np.mean([step.staleness for step in steps]) == pytest.approx(3.0, rel=0.01)
    slow = [step.staleness for step in steps if step.worker == 3]
    assert max(slow) == 12 > max(step.staleness for step in steps if step.worker != 3)
    assert max(slow) <= rule.most
