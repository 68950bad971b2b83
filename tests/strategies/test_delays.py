"""Late gradients: their ages, also simulated, their steps, and the point where they are taken."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.models.spec import ParamSpec
from mlxhog.optim import SGD, DelayFeedback
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.gradients import Rows
from mlxhog.strategies.delays import speed_factor, staleness_factor
from mlxhog.strategies.in_order import StalenessTrace
from mlxhog.strategies.prediction import PredictingReader, record
from tests.pairs import each_of
from tests.strategies.runs import LR, ONE, begin_step, first, new_arena, step, strategy, team
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
    taken = [staleness_factor(text, tau, 4) for tau in (0, 1, 2, 3, 8, 9)]
    assert taken[: len(factors)] == pytest.approx(factors)


def test_rates_by_speed_move_the_parameters_equally_far_and_as_far_as_without_them():
    times = [0.1, 0.1, 0.5]
    factors = [speed_factor(own, times) for own in times]
    per_second = [factor / own for factor, own in zip(factors, times, strict=True)]
    assert per_second == pytest.approx([per_second[0]] * 3)
    assert sum(per_second) == pytest.approx(sum(1 / own for own in times))
    assert speed_factor(0.0, [0.1]) == 1.0  # not measured yet


PARAMS = {"rows": ParamSpec("rows", (3, 2), "zeros", "rows"), "w": ParamSpec("w", (4,), "zeros")}


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
    return one.write({"w": np.full(4, gradient, np.float32)}, lease, ONE)


def test_the_reported_staleness_is_that_of_the_learning_rate(arena):
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


def test_a_gradient_that_is_too_stale_changes_nothing_and_is_no_sign_of_divergence(arena):
    one = worker(arena, staleness_lr="drop:2")
    outcome = take(one, others=3)
    assert (outcome.applied, outcome.is_stale, outcome.staleness) == (False, True, 3)
    assert (arena.counters.load("version"), one.context.entry.opt_step) == (3, 0)
    assert not arena.param("w").any()
    assert one.context.ledger.count_done() == 1


def test_a_stale_update_predicts_the_next_ones_by_its_own_staleness():
    """Each worker has read before the other wrote: F = 1/2, 3/4, ... of its last step."""
    rule, layout = DelayFeedback(SGD(weight_decay=0.0)), {"private": (FEEDBACK,)}
    with team(rule=rule, layout=layout, delay_feedback=True) as (arena, _, *workers):
        take(workers[0], gradient=4.0)
        assert arena.param("w").tolist() == [-LR * 4] * 4  # no update came between
        take(workers[1], gradient=4.0, others=3)
        take(workers[0], gradient=8.0, others=1)
        plain = -LR * (4 + 4 + 8)
        assert arena.param("w").tolist() == [plain - LR * (4 * 3 / 4 + 8 / 2)] * 4
        take(workers[1], gradient=0.0)
        assert arena.param("w").tolist() == [plain - LR * 8 / 2] * 4  # its advance is taken back


def steps(text, seed=0, n=4000):
    trace = StalenessTrace(text, seed)
    return [trace.at(step) for step in range(n)]


def test_a_fixed_staleness_is_that_of_workers_that_apply_in_turn():
    rule = StalenessTrace("fixed:2")
    assert (rule.workers, rule.most) == (3, 2)
    assert steps("fixed:2", n=5) == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 2)]


@each_of(
    ("text", "mean", "most"),
    [("uniform:1:5", 3.0, 5), ("geometric:3", 3.0, 25), ("histogram:0=1,4=3", 3.0, 4)],
)
def test_drawn_staleness_has_the_requested_mean_and_depend_on_seed_and_step_alone(text, mean, most):
    drawn, rule = [step.staleness for step in steps(text)], StalenessTrace(text)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert max(drawn) <= rule.most == most
    assert rule.at(49).staleness == drawn[49]
    assert [step.staleness for step in steps(text, seed=1)] != drawn


def test_a_tiny_mean_staleness_is_none():
    assert {step.staleness for step in steps("geometric:1e-17")} == {0}


def test_speeds_give_each_worker_its_part_and_a_mean_staleness_of_p_minus_1():
    taken = steps("speed:1,1,1,4")
    shares = Counter(step.worker for step in taken)
    assert shares[0] == pytest.approx(4 * shares[3], rel=0.01)
    assert np.mean([step.staleness for step in taken]) == pytest.approx(3.0, rel=0.01)
    slow = [step.staleness for step in taken if step.worker == 3]
    assert max(slow) == 12 > max(step.staleness for step in taken if step.worker != 3)
    assert max(slow) <= StalenessTrace("speed:1,1,1,4").most


def test_a_step_by_speeds_depends_on_its_number_alone_and_a_long_run_keeps_few_of_them():
    for text in ("speed:1,1,1,4", "speed:0.5,3,0.25", "speed:0.1,0.3,0.7", "speed:1e308,1e307"):
        trace, n = StalenessTrace(text), 3000
        taken = [trace.at(k) for k in range(n)]
        assert len(trace._steps) <= trace.most + 2
        for k in (n - 1, 0, 1234, 7, n - 2):  # of a resumed run, and of the same one
            assert StalenessTrace(text).at(k) == trace.at(k) == taken[k]
        last = {}
        for k, (worker, staleness) in enumerate(taken):
            assert staleness == min(k - last.get(worker, -1) - 1, trace.most)
            last[worker] = k


N = 4
PREDICTIONS = {"none": set(), "own": {"own_prev", "a"}, "last": {"last", "prev", "a", "b"}}
SHARED = {"optimizer": "adamw", "moments": "shared"}


def ahead(predict, **more):
    """The facts of a run that predicts so."""
    return strategy(predict=predict, **(SHARED if predict == "last" else {}), **more).run


@pytest.fixture
def recording():
    with new_arena(strategy(predict="last", **SHARED)) as arena:
        yield arena


def read(result, arena):
    """The first element that a reader reads."""
    dst = np.empty_like(arena.params)
    result.read(dst)
    assert len(set(dst[:N].tolist())) == 1
    return float(dst[0])


def last_steps(arena, last, prev):
    result = record(arena, ahead("last"), 2)
    assert result is not None
    result.last[:N], result.prev[:N] = last, prev


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_worker_reads_the_parameters_as_they_are(recording, prediction):
    last_steps(recording, 5.0, 3.0)
    recording.param("w")[...] = 1.0
    assert read(PredictingReader(recording, ahead(prediction), 1), recording) == 1.0
    extrapolation = PredictingReader(recording, ahead(prediction), 2).extrapolation(1.0)
    assert extrapolation.keys() == PREDICTIONS[prediction]


def test_last_steps_are_repeated_as_often_as_others_are_expected_to_step(recording):
    result = PredictingReader(recording, ahead("last"), 4)
    recording.param("w")[...] = 1.0
    last_steps(recording, 0.5, 0.25)
    step = 0.5 + 0.5 * (0.5 - 0.25)
    assert read(result, recording) == 1.0 + 3 * step  # one of each other worker, at first
    for _ in range(200):
        result.landed(7)
    assert read(result, recording) == pytest.approx(1.0 + 7 * step)
    result.landed(0)
    assert read(result, recording) == pytest.approx(1.0 + 0.9 * 7 * step)


@pytest.mark.parametrize(
    ("steps", "landed", "share"),
    [
        (4, 3, 3 / 4),
        (1, 0, 3 / 4),
        (300, 3, 3 / 300),  # it evaluated between its reads
        (31, 30, 3 / 4),  # it is slow: 30 come while it computes, too
    ],
)
def test_own_movement_is_extrapolated_for_no_more_steps_than_are_expected(
    recording, steps, landed, share
):
    result = PredictingReader(recording, ahead("own"), 4)
    for _ in range(200):
        result.landed(landed)
    recording.counters.store("version", steps)
    recording.param("w")[...] = 2.0
    assert read(result, recording) == pytest.approx(2.0 + share * 2.0, rel=1e-6)
    recording.counters.add("version", 4)
    recording.param("w")[...] = 3.0
    assert read(result, recording) == 3.0 + 0.75  # between these reads came one of each again


def test_every_step_of_a_worker_is_seen_by_the_next_read_of_another(recording):
    of = strategy(predict="last", **SHARED)
    one, other = (one_of(recording, slot, of) for slot in (1, 2))
    step(one, -2.0)
    begin_step(other)
    moved = 2.0 * LR
    assert other.context.backend.param_buffer[0] == moved + (moved + 0.5 * moved)


def test_in_turn_copies_are_moved_on_by_the_steps_of_all_others():
    with team("round_robin", 3, predict="last", **SHARED) as (arena, _, one, *_):
        step(one, -2.0)
        moved = 2.0 * LR
        assert first(arena, "turns.after.1") == moved + 2 * (moved + 0.5 * moved)


def test_with_overlap_the_workers_own_step_is_expected_too(recording):
    last_steps(recording, 0.5, 0.5)
    assert read(PredictingReader(recording, ahead("last", overlap=True), 3), recording) == 3 * 0.5
    own = PredictingReader(recording, ahead("own", overlap=True), 3)
    recording.param("w")[...] = 2.0
    assert read(own, recording) == 2.0 + 2.0  # 3/3 of the movement
    assert own.horizon(3) == 3.0
