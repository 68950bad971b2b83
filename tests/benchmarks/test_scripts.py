"""What single benchmarks count, on a fraction of their work."""

import multiprocessing

import compare_power as power
import numpy as np
import parity_false_failures as parity
import pytest
from classic import arms
from harness import interleaved
from training.rounded_moments import RoundedAdamW, RoundedMuon, rounded

from mlxhog.experiments.paired_test import LEVELS
from mlxhog.optim import RunContext
from tests.optim.small import HIDDEN, dense_gradients, trained
from tests.research.classic.pair_problems import delta_and_rho
from tests.tolerances import FITTED_STATISTIC, assert_close


def test_equal_sides_are_never_told_apart_and_a_clear_gain_always():
    small = np.random.default_rng(0).normal(0, 1e-4, 20).tolist()
    assert power.told(small, tests=50, gain=power.GAIN) == 50
    assert power.told([0.0] * 12, tests=50, gain=0.0) == 0
    large = np.random.default_rng(0).normal(0, 1.0, 20).tolist()
    assert power.told(large, tests=50, gain=power.GAIN) <= 2


def test_a_small_simulation_agrees_with_the_table(monkeypatch):
    monkeypatch.setattr(power, "TABLE_SEQUENCES", power.CHUNK)
    monkeypatch.setattr(power, "MAX_PAIRS", 6)
    result = power.levels()
    assert result == pytest.approx({k: LEVELS[k] for k in result}, rel=0.15)
    monkeypatch.setattr(power, "SIMULATED", 50_000)
    assert power.simulated_rate("normal", 0.0) == pytest.approx(0.01, abs=0.002)
    assert power.simulated_rate("normal", 4.0) > 0.99


def test_an_arm_that_ends_at_its_start_ends_the_script_and_every_other_arm():
    good = interleaved.Program("statistics", "mean", {})  # misses an argument
    waiting = interleaved.Program("tests.benchmarks.test_scripts", "waiting", {})
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="its own output says why"):
        interleaved.in_turns({"waits": waiting, "ends": good}, threads=1, turns=1, seconds=0.0)
    assert set(multiprocessing.active_children()) <= before


def waiting(threads):
    """A step that takes no time."""
    return lambda: 0.0


def test_dblife_like_has_the_published_row_and_shows_a_tenth_of_labels():
    graph = arms.dblife_like()
    assert (graph.n_vertices, graph.n_edges) == (18_167, 180_110)
    delta, rho = delta_and_rho(graph.heads, graph.tails, graph.n_vertices)
    assert_close(delta, 4.35e-3, FITTED_STATISTIC)
    assert_close(rho, 8.64e-3, FITTED_STATISTIC)
    assert set(graph.terminals.values()) == set(range(8))
    assert 0.09 < len(graph.terminals) / graph.n_vertices < 0.11


@pytest.mark.parametrize("rounding", ["none", "nearest", "stochastic"])
@pytest.mark.parametrize("kind", [RoundedAdamW, RoundedMuon])
def test_moments_are_rounded_after_an_update_that_was_computed_in_float32(kind, rounding):
    rule, exact = (kind(run=RunContext(hidden=HIDDEN), rounding=way) for way in (rounding, "none"))
    (flat, where), (flat_exact, _) = (
        trained(one, 1, grads=dense_gradients) for one in (rule, exact)
    )
    np.testing.assert_array_equal(flat, flat_exact)
    low_bits = [moment.view(np.uint32) & 0xFFFF for moment in where.private.values()]
    assert np.any(low_bits) == (rounding == "none")
    assert all(moment.any() for moment in where.private.values())


def test_rounding_is_to_the_nearest_or_right_on_average():
    x = np.full(100_000, 1 + 2.0**-9, np.float32)  # a quarter of the way to the next bfloat16
    assert (rounded(x, "nearest", None) == 1).all()
    drawn = rounded(x, "stochastic", np.random.default_rng(0))
    assert set(drawn) == {1, 1 + 2.0**-7}
    assert np.mean(drawn == 1) == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_random_models_never_fail_and_their_faults_are_found():
    for number in (2, 3):  # small ones: a Large, and a stack of both kinds of blocks
        pressure, failed, missed = parity.examine(number)
        assert pressure < 1
        assert not failed
        assert not missed
