"""How old a simulated gradient is: a function of seed and step."""

from collections import Counter

import numpy as np
import pytest

from mlxhog.strategies.in_order import Course, SimulatedStaleness
from tests.pairs import each_of

STEPS = 4000


def steps(text, seed=0, n=STEPS):
    course = Course(SimulatedStaleness.parse(text), seed)
    return [course.at(step) for step in range(n)]


def test_a_fixed_age_is_that_of_workers_that_apply_in_turn():
    rule = SimulatedStaleness.parse("fixed:2")
    assert (rule.workers, rule.most) == (3, 2)
    assert steps("fixed:2", n=5) == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 2)]


@each_of(
    ("text", "mean", "most"),
    [("uniform:1:5", 3.0, 5), ("geometric:3", 3.0, 25), ("histogram:0=1,4=3", 3.0, 4)],
)
def test_drawn_ages_have_the_requested_mean_and_depend_on_seed_and_step_alone(text, mean, most):
    drawn, rule = [step.staleness for step in steps(text)], SimulatedStaleness.parse(text)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert max(drawn) <= rule.most == most
    assert Course(rule, 0).at(49).staleness == drawn[49]
    assert [step.staleness for step in steps(text, seed=1)] != drawn


def test_speeds_give_each_worker_its_part_and_gradients_a_mean_age_of_p_minus_1():
    taken = steps("speed:1,1,1,4")
    shares = Counter(step.worker for step in taken)
    assert shares[0] == pytest.approx(4 * shares[3], rel=0.01)
    assert np.mean([step.staleness for step in taken]) == pytest.approx(3.0, rel=0.01)
    slow = [step.staleness for step in taken if step.worker == 3]
    assert max(slow) == 12 > max(step.staleness for step in taken if step.worker != 3)
    assert max(slow) <= SimulatedStaleness.parse("speed:1,1,1,4").most
