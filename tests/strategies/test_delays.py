"""How late gradients are, in a simulation too, and the steps that they take under each option."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.models.spec import ParamSpec
from mlxhog.optim import SGD, DelayFeedback
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.updates import Rows
from mlxhog.strategies.delays import StalenessRule, speed_factor
from mlxhog.strategies.in_order import Course, SimulatedStaleness
from tests.pairs import each_of
from tests.strategies.runs import LR, begin_step, new_arena, strategy
from tests.strategies.runs import worker as one_of


@each_of(
    ("text", "factors"),
    [
        ("none", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 1 / 1.5, 1 / 2, 1 / 2.5, 1 / 5, 1 / 5.5]),
        ("linear:0", [1, 1, 1, 1, 1, 1]),
        ("exp", [1, 0.9, 0.81, 0.729, 0.9**8, 0.9**9]),
        ("exp:0", [1, 0, 0, 0, 0, 0]),
        ("delay_adaptive", [1, 1, 1, 1, 3 / 8, 3 / 9]),
        ("drop", [1, 1, 1, 1, 1, 0]),
        ("drop:2", [1, 1, 1, 0, 0, 0]),
    ],
)
def test_the_step_size_of_a_late_gradient_is_what_the_rule_says(text, factors):
    rule = StalenessRule.parse(text)
    assert [rule.factor(tau, 4) for tau in (0, 1, 2, 3, 8, 9)][: len(factors)] == pytest.approx(
        factors
    )


def test_rates_by_speed_move_the_parameters_equally_far_and_as_far_as_without_them():
    times = [0.1, 0.1, 0.5]
    factors = [speed_factor(own, times) for own in times]
    per_second = [factor / own for factor, own in zip(factors, times, strict=True)]
    assert per_second == pytest.approx([per_second[0]] * 3)
    assert sum(per_second) == pytest.approx(sum(1 / own for own in times))
    assert speed_factor(0.1, [0.1, 0.0]) == 1.0  # not measured yet


PARAMS = {
    "rows": ParamSpec("rows", (3, 2), "zeros", "rows"),
    "w": ParamSpec("w", (4,), "zeros"),
}


@pytest.fixture
def arena():
    with new_arena(strategy(), PARAMS) as arena:
        yield arena


def worker(arena, **options):
    return one_of(arena, 1, strategy(**options))


def test_a_compensated_gradient_has_moved_on_with_the_parameters(arena):
    one = worker(arena, delay_compensation="constant:0.5")
    one.read()
    arena.param("w")[...] = 2.0
    arena.param("rows")[1] = 4.0
    rows = Rows(np.array([1, 1], np.int32), np.ones((2, 2), np.float32))
    result = one._delays.compensated({"w": np.full(4, 3.0, np.float32), "rows": rows})
    assert result["w"].tolist() == [3 + 0.5 * 9 * 2] * 4
    assert result["rows"].index.tolist() == [1]
    np.testing.assert_array_equal(result["rows"].values, [[2 + 0.5 * 4 * 4] * 2])


def test_an_adaptive_compensation_is_divided_by_the_root_of_the_mean_square(arena):
    one = worker(arena, delay_compensation="adaptive:2")
    one.read()
    arena.param("w")[...] = arena.param("rows")[...] = 1.0
    for t in range(1, 5):
        values = np.array([3.0, 1.0, 5.0, 0.5])[:t]
        shares = 0.05 * 0.95 ** np.arange(t)[::-1]
        mean = (shares * values**2).sum() / (1 - 0.95**t)  # as Adam corrects its moments
        actual = one._delays.compensated({"w": np.full(4, values[-1], np.float32)})["w"]
        expected = values[-1] + 2 / np.sqrt(mean + 1e-7) * values[-1] ** 2
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        lost = {"w": np.full(4, np.inf, np.float32)}
        assert one._delays.compensated(lost) is lost  # and leaves the mean as it is
    for row in (0, 0, 0, 2):  # the first gradient of a row, too, whenever it comes
        rows = Rows(np.array([row], np.int32), np.full((1, 2), 3.0, np.float32))
        values = one._delays.compensated({"rows": rows})["rows"].values
        np.testing.assert_allclose(values, 3 + 2 / 3 * 9, rtol=1e-5)


def take(one, gradient=1.0, others=0):
    """A step that comes `others` updates late."""
    lease = begin_step(one)
    one.context.arena.counters.add("version", others)
    return one.write({"w": np.full(4, gradient, np.float32)}, lease, samples=1)


def test_the_reported_staleness_is_the_one_that_the_step_size_was_scaled_by(arena):
    one = worker(arena, staleness_lr="linear:1")
    rule = one.context.optimizer

    def step(*args, **options):
        rule.step(*args, **options)
        arena.counters.add("version", 5)  # steps of others that land meanwhile

    one.context.optimizer = SimpleNamespace(step=step)
    outcome = take(one, others=3)
    assert (outcome.staleness, outcome.version) == (3, 3 + 5 + 1)
    assert arena.param("w").tolist() == [-LR / 4] * 4
    assert one.context.entry.rate_sum == LR / 4


def test_a_gradient_that_comes_too_late_changes_nothing_and_is_no_sign_of_divergence(arena):
    one = worker(arena, staleness_lr="drop:2")
    outcome = take(one, others=3)
    assert (outcome.applied, outcome.too_late, outcome.staleness) == (False, True, 3)
    assert (arena.counters.load("version"), one.context.entry.opt_step) == (3, 0)
    assert not arena.param("w").any()
    assert one.context.ledger.count_done() == 1


def test_a_late_step_counts_on_the_next_ones_by_its_own_staleness():
    """Each worker has read before the other wrote: F = 1/2, 3/4, ... of its last step."""
    of, rule = strategy(delay_feedback=True), DelayFeedback(SGD(weight_decay=0.0))
    with new_arena(of, private=(FEEDBACK,)) as arena:
        workers = [one_of(arena, slot, of, optimizer=rule) for slot in (1, 2)]
        take(workers[0], gradient=4.0)
        assert arena.param("w").tolist() == [-LR * 4] * 4  # no update came between
        take(workers[1], gradient=4.0, others=3)
        take(workers[0], gradient=8.0, others=1)
        plain = -LR * (4 + 4 + 8)
        assert arena.param("w").tolist() == [plain - LR * (4 * 3 / 4 + 8 / 2)] * 4
        take(workers[1], gradient=0.0)
        assert arena.param("w").tolist() == [plain - LR * 8 / 2] * 4  # its advance is taken back


# -- ages of simulated gradients -------------------------------------------------------------------


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
