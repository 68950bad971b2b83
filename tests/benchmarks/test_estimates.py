"""Estimates of benchmarks: intervals with their error, and no arm that differs from itself."""

import math

import numpy as np
import pytest
from harness import claims, estimates, interleaved

PAGES, COMPARISONS, PAIRS = 100, 6, 5


def test_a_mean_has_the_interval_and_p_value_of_students_t():
    mean = estimates.Mean.of([0.1, 0.2, 0.3])
    # Standard error 0.1 / sqrt(3), 4.3027 of them to either side for two degrees of freedom.
    assert mean.low == pytest.approx(0.2 - 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    assert mean.p(0.0) == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641
    assert mean.p(mean.low) == pytest.approx(0.05)
    assert mean.n == 3


def test_a_ratio_is_the_geometric_mean_of_the_pairs_ratios():
    ratio = estimates.Ratio.of([2.0, 8.0], [1.0, 1.0])
    assert ratio.value == pytest.approx(4.0)
    assert ratio.n == 2
    assert ratio.low == pytest.approx(1 / estimates.Ratio.of([1.0, 1.0], [2.0, 8.0]).high)


def test_repeats_without_any_spread_are_no_interval_and_decide_nothing():
    for limit in (0.0, 0.5, 1.0):
        claim = claims.Claim.of("share", estimates.Mean.of([0.5, 0.5, 0.5]), "<=", limit)
        assert (claim.ended, claim.measured) == ("inconclusive", "0.5 (n 3, no interval)")


@pytest.mark.parametrize("values", [[1.0], [1.0, math.inf, 2.0], [1.0, 0.0]])
def test_nothing_can_be_told_from_one_pair_or_a_goal_that_was_not_reached(values):
    ratio = estimates.Ratio.of(values, [1.0] * len(values))
    claim = claims.Claim.of("faster", ratio, ">=", 0.5)
    assert math.isnan(ratio.low)
    assert claim.ended == claims.INCONCLUSIVE


def test_no_failure_in_some_trials_is_a_bound_and_not_a_zero():
    share = estimates.Share.of(0, 100)
    assert (share.value, share.low) == (0.0, 0.0)
    assert share.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert share.p(share.high) == pytest.approx(0.05)
    assert estimates.Share.of(100, 100).low == pytest.approx(1 - share.high)


def test_as_many_pairs_as_are_needed_decide_nearly_always_and_half_of_them_do_not():
    assert estimates.pairs_needed(1.0, 0.001) == estimates.MIN_PAIRS
    assert estimates.pairs_needed(0.0, 1.0) is None
    assert estimates.pairs_needed(math.nan, math.nan) is None
    needed = estimates.pairs_needed(1.0, 1.0)
    # Half of the distance is 2.11 standard errors, for 17 degrees of freedom, of 1 / sqrt(18).
    assert needed == 18
    assert estimates.pairs_needed(1.0, 1.0, comparisons=4) > needed
    rng = np.random.default_rng(87)

    def decided(n):
        means = (estimates.Mean.of(rng.normal(1.0, 1.0, n)) for _ in range(100))
        return sum(mean.low > 0.0 for mean in means)

    assert decided(needed) >= 93
    assert decided(needed // 2) < 90


def test_holm_multiplies_by_the_number_of_comparisons_that_remain():
    assert estimates.holm([0.03, 0.01, math.nan, 0.02]) == pytest.approx(
        [0.04, 0.03, math.nan, 0.04], nan_ok=True
    )


@pytest.mark.parametrize(
    ("values", "ended"),
    [
        ([1.0, 1.01, 0.99], "supported"),
        ([1.5, 1.51, 1.49], "refuted"),
        ([1.0, 1.2, 0.8], "inconclusive"),
    ],
)
def test_two_arms_are_level_where_the_interval_lies_within_both_limits(values, ended):
    ratio = estimates.Ratio.of(values, [1.0, 1.0, 1.0])
    assert claims.Claim.of("level", ratio, "within", 1.1, least=0.9).ended == ended


def simulated_page(rng, gain):
    """The claims of a page: its arms differ by a factor, times within a pair are correlated."""
    page = []
    for _ in range(COMPARISONS):
        spell = rng.normal(0, 0.3, PAIRS)  # of the machine, shared by a pair
        own, other = (np.exp(spell + rng.normal(0, 0.05, PAIRS)) for _ in range(2))
        ratio = estimates.Ratio.of((gain * other).tolist(), own.tolist())
        page.append(claims.Claim.of("faster", ratio, ">=", 1.0))
    return page


def test_at_most_5_of_100_pages_tell_equal_arms_apart():
    rng = np.random.default_rng(33)
    pages = [simulated_page(rng, 1.0) for _ in range(PAGES)]

    def decided(page):
        return any(claim.ended != claims.INCONCLUSIVE for claim in page)

    wrong = sum(decided(claims.corrected(page)) for page in pages)
    # The rate itself is at most .05; two standard errors of it for as many pages.
    assert wrong <= PAGES * 0.05 + 2 * math.sqrt(PAGES * 0.05 * 0.95)
    assert sum(map(decided, pages)) > 3 * wrong  # what the correction prevents
    others = [claims.corrected(simulated_page(rng, 1.5)) for _ in range(20)]
    assert sum(all(claim.ended == claims.SUPPORTED for claim in page) for page in others) >= 18


def test_an_arm_is_compared_with_itself_in_the_same_turns():
    order = []

    def run(arm, turn):
        order.append((arm, turn))
        return float(len(order))

    runs, again = interleaved.with_control((1, 2), ("a", "b"), run, control="a", warm_up=True)
    assert order[:3] == [("a", 1), ("b", 1), ("a", 1)]  # uncounted
    assert order[3:] == [("a", 1), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("a", 2)]
    assert (runs, again) == ({"a": [4.0, 9.0], "b": [5.0, 8.0]}, [6.0, 7.0])
    findings = claims.Findings()
    findings.same("a", [1.0, 1.01, 1.02], [3.0, 3.1, 3.05])
    assert claims.false_verdicts(findings.controls) == 1
