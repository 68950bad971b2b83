"""The experiment on staleness: its arms can run, and its verdicts follow from the losses."""

from __future__ import annotations

from typing import Any

import pytest

from mlxhog import TrainConfig

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def staleness(load: Any) -> Any:
    return load("staleness")


def verdicts(staleness: Any, load: Any, cost: Any) -> list[str]:
    """Verdicts where serial's loss is 1000 / gradients, and an arm costs `cost(tau, seed)`."""
    record = load("experiment.record")
    scale, n = record.Scale("full", seeds=SEEDS), staleness.GRADIENTS
    ends = {}
    for model in staleness.models(scale):
        for seed in SEEDS:
            for share in staleness.SHARES:
                k = round(n * share)
                job = staleness.Job((staleness.SERIAL, 1), model, seed, k, 1e-3)
                ends[job] = {"bits": 1000 / k, "staleness": 0.0}
            for name, count in staleness.arms(scale, model):
                bits = 1000 / (n / cost(count - 1, seed))
                job = staleness.Job((name, count), model, seed, n, 1e-3)
                ends[job] = {"bits": bits, "staleness": count - 1}
            again = staleness.Job((staleness.LOCK_FREE, 2), model, seed, n, 1e-3, again=True)
            ends[again] = {"bits": 1000 / (n / cost(1, seed)), "staleness": 1}
    measured = [staleness.Measured(model, scale, n, ends) for model in staleness.models(scale)]
    outcome = staleness.outcome(scale, measured, {"gradients": n, "lr": {}})
    return [one.verdict for one in record.together_corrected(outcome).compared]


def test_a_line_with_a_slope_below_a_serial_run_is_graceful(staleness: Any, load: Any) -> None:
    def line(tau: int, seed: int) -> float:
        return 1 + (0.1 + 1e-4 * seed) * tau

    assert verdicts(staleness, load, line) == ["holds", "follows from the definitions"]


def test_a_line_with_a_slope_above_a_serial_run_is_not_graceful(staleness: Any, load: Any) -> None:
    def steep(tau: int, seed: int) -> float:
        return 1 + (1.5 + 1e-4 * seed) * tau

    assert verdicts(staleness, load, steep)[0] == "holds in part"  # a line, but a steep one


def test_a_cost_that_bends_upwards_is_not_linear(staleness: Any, load: Any) -> None:
    def bent(tau: int, seed: int) -> float:
        return 1 + (2e-5 + 1e-8 * seed) * tau**4

    assert verdicts(staleness, load, bent)[0] in ("holds in part", "does not hold")


def test_seeds_that_disagree_decide_nothing(staleness: Any, load: Any) -> None:
    def apart(tau: int, seed: int) -> float:
        return 1 + 0.02 * tau * (1, 4, 30)[seed - 1] ** (tau > 20)

    assert verdicts(staleness, load, apart)[0] == "cannot be told here"


def test_every_arm_is_a_training_that_can_be_and_reaches_staleness_31(
    staleness: Any, load: Any
) -> None:
    full = load("experiment.record").Scale("full")
    for model in staleness.models(full):
        arms = staleness.arms(full, model)
        for name, count in arms:
            TrainConfig(**staleness.options(name, count), lr=1e-3)
        for rule in (staleness.BEST, staleness.BEST_ADAMW):
            assert max(count - 1 for name, count in arms if name == rule) == 31
    assert set(staleness.settings(full)["lr"]) == set(staleness.models(full))
