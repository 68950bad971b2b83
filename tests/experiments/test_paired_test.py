"""The sequential test keeps its error rate, tells what is there, and stops once it can tell."""

import math

import numpy as np
import pytest

from mlxhog.experiments.paired_test import ERROR, LEVELS, boundary, decide, look

SEQUENCES = 100_000
TABLE_ERROR = 4 * math.sqrt(ERROR * (1 - ERROR) / SEQUENCES)


def draw(planned):
    return np.random.default_rng(planned).standard_normal((SEQUENCES, planned))


def crossings(drawn, planned):
    """The sign of each sequence's first crossing, 0 for none."""
    signs = np.zeros(len(drawn), np.int64)
    for k in range(2, planned + 1):
        part = drawn[:, :k]
        t = part.mean(1) / part.std(1, ddof=1) * math.sqrt(k)
        crossed = np.abs(t) >= boundary(k, planned)
        signs = np.where((signs == 0) & crossed, np.sign(t).astype(np.int64), signs)
    return signs


@pytest.mark.slow
@pytest.mark.parametrize("planned", [2, 3, 4, 6, 10, 20])
def test_one_comparison_in_a_hundred_tells_by_chance_whatever_the_number_of_looks(planned):
    rate = (crossings(draw(planned), planned) != 0).mean()
    assert rate == pytest.approx(ERROR, abs=TABLE_ERROR)


def test_a_gain_of_two_point_six_spreads_is_told_in_nine_of_ten():
    signs = crossings(draw(6) + 2.6, 6)
    assert (signs == 1).mean() >= 0.9
    assert (signs == -1).mean() == 0.0


def test_a_clear_gain_is_told_at_the_first_look_and_later_pairs_change_nothing():
    clear = [0.100, 0.101, 0.1005]
    outcome = decide(clear, 6)
    assert (outcome.pairs, outcome.sign, outcome.ended) == (3, 1, True)
    assert 0 < outcome.low < outcome.mean < outcome.high
    assert decide([*clear, -5.0, 7.0], 6) == outcome
    mirrored = decide([-x for x in clear], 6)
    assert (mirrored.sign, mirrored.mean) == (-1, -outcome.mean)
    assert decide([7 * x for x in clear], 6).sign == 1


def test_what_cannot_be_told_goes_on_to_the_planned_end():
    differences = [0.01, -0.02, 0.015, 0.0, -0.005, 0.01]
    for k in range(6):
        assert not decide(differences[:k], 6).ended
    outcome = decide(differences, 6)
    assert (outcome.sign, outcome.ended) == (0, True)
    assert outcome.low < 0 < outcome.high


def test_the_interval_is_that_of_students_t_at_the_level_of_the_look():
    from scipy import stats

    values = [0.1, 0.2, 0.3]
    outcome = look(values, 3)
    expected = stats.t.interval(1 - LEVELS[3], 2, 0.2, 0.1 / math.sqrt(3))
    assert (outcome.low, outcome.high) == pytest.approx(expected)
