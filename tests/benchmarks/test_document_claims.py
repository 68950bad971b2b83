"""Claims of documents as experiments test them: what they say, and that each can come out wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def stragglers(load: Any) -> Any:
    return load("stragglers")


def verdicts(load: Any, compared: Any) -> dict[str, str]:
    outcome = load("experiment.record").Outcome(compared=compared, table=[])
    corrected = load("experiment.record").together_corrected(outcome)
    return {one.claim: one.verdict for one in corrected.compared}


def test_exp_of_a_half_has_the_rate_a_half_and_so_the_mean_two(stragglers: Any) -> None:
    assert stragglers.DELAY == 2.0
    harmonic = stragglers.expected(0.0, 1.0, 1000)
    assert harmonic == pytest.approx(7.485, abs=0.001)
    shifted = stragglers.expected(stragglers.LEAST, stragglers.DELAY, 1000) / 3.0
    assert shifted == pytest.approx((1 + 2 * harmonic) / 3)
    assert shifted == pytest.approx(5.32, abs=0.01)


def test_the_slowest_of_n_is_simulated_as_the_formula_says(stragglers: Any) -> None:
    rng = np.random.default_rng(0)
    for n in (2, 16, 1000):
        slow = stragglers.slowest(lambda n: 1 + rng.exponential(2.0, n), n, 2000, 3.0)
        assert slow.mean == pytest.approx(stragglers.expected(1.0, 2.0, n) / 3.0, rel=0.03)


@pytest.mark.parametrize(("mean", "expected"), [(1.0, "holds"), (0.5, "does not hold")])
def test_seven_times_the_mean_is_true_of_steps_that_are_exponential_only(
    load: Any, stragglers: Any, mean: float, expected: str
) -> None:
    rng = np.random.default_rng(0)
    least = 1 - mean

    def draw(n: int) -> Any:
        return least + rng.exponential(mean, n)

    both = {n: stragglers.slowest(draw, n, 1000, 1.0) for n in (16, 1000)}
    simulated = {"exponential": both, "1 + Exp(0.5)": both}
    steps = {seed: draw(100_000) for seed in range(6)}
    compared = stragglers.compared(simulated, steps, rng, 1000)
    ends = verdicts(load, compared)
    assert ends["The same for steps of workers here"] == expected
    fit = next(end for claim, end in ends.items() if claim.startswith("Steps of workers"))
    assert fit == "holds"


def test_the_rows_from_which_two_workers_are_faster_lie_where_their_times_cross(load: Any) -> None:
    svm = load("synthetic_svm")
    alone = {1_000: [1.0, 1.0], 10_000: [2.0, 2.0], 100_000: [8.0, 8.0]}
    several = {1_000: [4.0, 4.0], 10_000: [4.0, 8.0], 100_000: [4.0, 4.0]}
    least = svm.least_rows({rows: (alone[rows], several[rows]) for rows in alone})
    assert least.n == 2
    assert least.value == pytest.approx((4.5 + 4 + 2 / 3) / 2)
    never = svm.least_rows({rows: (alone[rows], [9.0, 3.0]) for rows in alone})
    assert math.isnan(never.value)


def ends_of(load: Any, gap: float) -> dict[str, list[float]]:
    steps = load("outer_steps")
    noise = np.random.default_rng(0).normal(0, 0.01, (3, 5))
    means = {steps.SGD: 3.0, steps.ADAMW: 2.5, steps.DILOCO: 2.5 + gap}
    return {
        arm: (mean + own).tolist() for (arm, mean), own in zip(means.items(), noise, strict=True)
    }


@pytest.mark.parametrize(
    ("gap", "expected"), [(-0.2, "holds"), (0.2, "does not hold"), (0.0, "cannot be told here")]
)
def test_the_outer_step_is_told_from_the_inner_optimizer(
    load: Any, gap: float, expected: str
) -> None:
    ends = verdicts(load, load("outer_steps").compared(ends_of(load, gap)))
    assert ends["because of its outer momentum, beside the inner optimizer"] == expected
    assert ends["Communication volume is the same"] == load("experiment.record").DESCRIBED


@pytest.mark.parametrize(("gap", "expected"), [(0.05, "holds"), (-0.05, "does not hold")])
def test_scaffold_is_compared_with_fedprox_itself(load: Any, gap: float, expected: str) -> None:
    clients, course = load("clients"), load("experiment.digits").Course
    rng = np.random.default_rng(0)

    def runs(accuracy: float) -> list[Any]:
        return [
            course(accuracy=[accuracy + noise] * 3, network_bytes=[1])
            for noise in rng.normal(0, 0.001, 5)
        ]

    by = {alpha: {"local_sgd": runs(0.7), "fedprox": runs(0.75), "scaffold": runs(0.75 + gap)}
          for alpha in (1.0, 0.01)}  # fmt: skip
    ends = verdicts(load, clients.compared(by, {"document": 0.0, "ours": 0.3}))
    assert ends["SCAFFOLD is better than FedProx at every division"] == expected
    assert ends["FedProx is better than Local SGD at every division"] == "holds"


@pytest.mark.parametrize(("worse", "expected"), [(1.5, "does not hold"), (1.0, "holds")])
def test_sparse_problems_can_be_worse_without_locks_as_well(
    load: Any, worse: float, expected: str
) -> None:
    noise = np.random.default_rng(0).normal(1, 0.001, (3, 5))
    losses = {
        density: {
            name: (ratio * own).tolist()
            for (name, ratio), own in zip(
                {"serial": 1.0, "racy": worse, "aig": 1.0}.items(), noise, strict=True
            )
        }
        | {"delayed": [1.0, 1.001, 0.999, 1.0, 1.002]}
        for density in (0.01, 0.25, 0.5)
    }
    ends = verdicts(load, load("density").compared(losses, 16))
    assert next(end for claim, end in ends.items() if "up to a density" in claim) == expected
    assert next(end for claim, end in ends.items() if "diverges" in claim) == "does not hold"


def test_the_documents_bounded_server_stops_and_a_gate_at_the_pull_would_not(load: Any) -> None:
    late = load("late_gradients")
    assert all(map(late.waits_for_ever, range(1, 9)))
    assert not late.waits_for_ever(10**6)


def problem_of(*writes: str) -> Any:
    return SimpleNamespace(defaults=SimpleNamespace(lr=0.1, writes=writes))


def test_hogwild_of_the_papers_tables_is_lock_free_and_locks_are_an_arm_of_their_own(
    load: Any,
) -> None:
    tables = load("paper_tables")
    for problem in (problem_of("lossless", "racy"), problem_of("hot-cold", "racy", "lossless")):
        arms = {arm.name: arm.config for arm in tables.arms_of(problem, 2, {}, 1)}
        assert arms["hogwild"].write == "racy"
        assert arms["lossless"].write == "lossless"
        assert ("hot-cold" in arms) == ("hot-cold" in problem.defaults.writes)


def test_the_papers_tables_are_refused_without_a_step_size_of_every_arm(load: Any) -> None:
    tables = load("paper_tables")
    rates = {"RCV1": {"serial": 0.5, "hogwild": 0.5, "lossless": 0.5, "aig": 0.5}}
    with pytest.raises(SystemExit, match="RCV1 has no .* for round_robin; .*--tune"):
        tables._measured_arms("RCV1", problem_of("lossless", "racy"), 2, rates)


def test_an_interval_whose_runs_miss_the_accuracy_decides_nothing(load: Any) -> None:
    steps, course = load("local_steps"), load("experiment.digits").Course

    def run(every: int, accuracy: float, more: int) -> Any:
        return course(accuracy=[accuracy], gradients=[400 + every + more], network_bytes=[1000])

    runs = {every: [run(every, 0.96, more) for more in (0, 1, 2)] for every in steps.INTERVALS}
    runs[50][1] = run(50, 0.9, 0)
    first = steps.compared(runs, 0.95)[0]
    assert "50: 1 of 3 miss it" in first.measured
    ends = {claim.name: claim.ended for claim in first.rests_on}
    assert ends["seconds of interval 7 / of 50"] == "cannot_be_told"


@pytest.mark.parametrize("bits", [math.nan, math.inf, 40.0])
def test_a_training_that_diverged_has_a_loss_that_can_be_averaged(load: Any, bits: float) -> None:
    language = load("experiment.language")
    bench = object.__new__(language.Bench)
    bench.held_out = SimpleNamespace(bits_per_byte=lambda params: bits)
    assert bench.bits(SimpleNamespace(params=np.zeros(1))) == language.WORST_BITS
