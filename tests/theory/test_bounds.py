"""The theorems as numbers, and whether they apply."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import DataError
from mlxhog.theory.bounds import SLACK, Facts, apply

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/tiny_hypergraph.json").read_text())
CONVEX = Facts(
    strongly_convex=True,
    smooth=True,
    bounded_gradients=True,
    lossless=True,
    sgd=True,
    delta=0.01,
)
DENSE_NETWORK = Facts(
    strongly_convex=False, smooth=True, bounded_gradients=True, lossless=True, sgd=False, delta=1.0
)
GRAPH_A = {"omega": 3, "rho": 0.5, "delta": 0.5}


def test_no_lag_costs_nothing():
    assert apply("penalty", CONVEX, tau=0, **GRAPH_A).values["penalty"] == 1.0


@pytest.mark.parametrize(("tau", "gamma", "k"), GOLDEN["bound"]["rows"])
def test_the_penalty_is_the_ratio_of_the_recorded_updates_to_those_of_serial(tau, gamma, k):
    (_, _, serial), *_ = GOLDEN["bound"]["rows"]
    bound = apply("penalty", CONVEX, tau=tau, **GRAPH_A).values["penalty"]
    assert k / serial == pytest.approx(bound, rel=1e-4)


def test_the_penalty_of_netflix_is_far_from_what_was_measured():
    netflix = {"omega": 20, "rho": 2.5e-3, "delta": 2.3e-3}
    at = [apply("penalty", CONVEX, tau=tau, **netflix).values["penalty"] for tau in (1, 9)]
    assert at == pytest.approx([6.8, 467], rel=5e-3)


def test_the_penalty_of_a_dense_block_is_six_times_its_size():
    bound = apply("penalty", DENSE_NETWORK, tau=1, omega=1000, rho=1, delta=1)
    assert bound.values["penalty"] == 7 + 6 * 1000
    assert bound.applies is False


@given(
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_at_the_largest_near_serial_lag_the_penalty_is_the_slack(omega, rho, delta):
    bound = apply("near-serial", CONVEX, omega=omega, rho=rho, delta=delta, tau=0)
    tau = bound.values["largest_tau"]
    if math.isinf(tau):
        assert max(rho, delta) < 1e-300, "without conflict, or with one too rare for a float"
        return
    at = apply("penalty", CONVEX, tau=tau, omega=omega, rho=rho, delta=delta)
    assert at.values["penalty"] - 1 == pytest.approx(SLACK, rel=1e-9)


def test_a_lag_beyond_the_near_serial_one_does_not_meet_the_condition():
    sparse = {"omega": 10, "rho": 1e-6, "delta": 1e-8}
    tau = apply("near-serial", CONVEX, **sparse, tau=0).values["largest_tau"]
    assert apply("near-serial", CONVEX, **sparse, tau=0.99 * tau).values["met"]
    assert not apply("near-serial", CONVEX, **sparse, tau=1.01 * tau).values["met"]


def test_the_quarter_power_rule_needs_conflict_that_vanishes_with_n():
    n = 10**8
    bound = apply("n^(1/4)", CONVEX, n=n, rho=20 / n, delta=10 / n, tau=9)
    assert bound.values == {"largest_tau": pytest.approx(100), "met": 1.0}
    assert bound.applies is True
    busy = apply("n^(1/4)", CONVEX, n=n, rho=2.5e-3, delta=2.3e-3, tau=9)
    assert busy.applies is False


def test_the_perturbed_iterate_condition_is_half_a_conflict_per_lag():
    p_conf, n = 0.02, 10_001
    bound = apply("perturbed iterate", CONVEX, n_examples=n, mean_degree=p_conf * (n - 1), tau=24)
    assert p_conf * bound.values["largest_tau"] == pytest.approx(0.5, rel=1e-3)
    assert bound.values["met"]
    assert bound.applies is True


def test_examples_that_never_meet_allow_any_lag():
    bound = apply("perturbed iterate", CONVEX, n_examples=10, mean_degree=0, tau=1e6)
    assert bound.values["largest_tau"] == math.inf
    assert bound.values["met"]


def test_dense_gradients_allow_half_an_update_of_lag():
    bound = apply("perturbed iterate", DENSE_NETWORK, n_examples=1000, mean_degree=999, tau=1)
    assert bound.values["largest_tau"] == pytest.approx(0.5, abs=1e-3)
    assert not bound.values["met"]


def test_negative_counts_are_refused():
    with pytest.raises(DataError, match="mean_degree = -1"):
        apply("perturbed iterate", CONVEX, n_examples=10, mean_degree=-1, tau=1)
    with pytest.raises(DataError, match="n_examples = 0"):
        apply("perturbed iterate", CONVEX, n_examples=0, mean_degree=1, tau=1)
    with pytest.raises(DataError, match="tau_concurrency = -1"):
        apply("step for dense problems", CONVEX, tau_concurrency=-1, tau_max=1)


def test_for_dense_problems_the_step_shrinks_with_the_lag_instead():
    bound = apply(
        "step for dense problems", DENSE_NETWORK, tau_concurrency=4, tau_max=100, smoothness=2.0
    )
    assert bound.values == {
        "constant_step": pytest.approx(1 / (2 * 20)),
        "step_without_old_gradients": pytest.approx(1 / (2 * 4)),
        "drop_above": 8,
    }
    assert bound.applies is False  # Adam
    sgd = replace(DENSE_NETWORK, sgd=True)
    assert apply("step for dense problems", sgd, tau_concurrency=4, tau_max=100).applies is True


def test_one_worker_may_take_the_whole_step():
    bound = apply("step for dense problems", DENSE_NETWORK, tau_concurrency=0, tau_max=0)
    assert bound.values["constant_step"] == 1.0
    assert "serial" in bound.words


def test_what_is_not_known_leaves_it_open_whether_a_bound_applies():
    unknown = replace(CONVEX, bounded_gradients=None)
    assert apply("penalty", unknown, tau=1, **GRAPH_A).applies is None
    assert apply("penalty", CONVEX, tau=1, **GRAPH_A).applies is True
    failing = replace(unknown, lossless=False)
    assert apply("penalty", failing, tau=1, **GRAPH_A).applies is False


def test_a_dense_network_is_told_why_the_theorem_does_not_apply():
    bound = apply("penalty", DENSE_NETWORK, tau=1, omega=9, rho=1, delta=1)
    failing = {each.needs: each.why for each in bound.assumptions if each.holds is False}
    assert set(failing) == {
        "a strongly convex objective",
        "updates of plain SGD",
        "sparse gradients",
    }
    assert "neural networks" in failing["a strongly convex objective"]
    assert "any two of them conflict" in failing["sparse gradients"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rho": 2}, "rho = 2: wanted a share"),
        ({"delta": float("nan")}, "delta = nan"),
        ({"tau": -1}, "tau = -1"),
    ],
)
def test_numbers_outside_their_range_are_refused(changed, message):
    with pytest.raises(DataError, match=message):
        apply("penalty", CONVEX, **{**GRAPH_A, "tau": 1, **changed})
