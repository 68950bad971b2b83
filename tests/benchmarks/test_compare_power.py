"""The benchmark of `mlxhog compare` counts what it says it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxhog.theory.paired_test import LEVELS


@pytest.fixture(scope="module")
def power(load: Any) -> Any:
    return load("compare_power")


def test_equal_sides_are_never_told_apart_and_a_clear_gain_always(power: Any) -> None:
    small = np.random.default_rng(0).normal(0, 1e-4, 20).tolist()
    assert power.told(small, tests=50, gain=power.GAIN) == 50
    assert power.told([0.0] * 12, tests=50, gain=0.0) == 0
    large = np.random.default_rng(0).normal(0, 1.0, 20).tolist()
    assert power.told(large, tests=50, gain=power.GAIN) <= 2


def test_a_small_simulation_agrees_with_the_table(
    power: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "TABLE_SEQUENCES", power.CHUNK)
    monkeypatch.setattr(power, "MOST_PAIRS", 6)
    made = power.levels()
    assert made == pytest.approx({k: LEVELS[k] for k in made}, rel=0.15)
    monkeypatch.setattr(power, "SIMULATED", 50_000)
    assert power.simulated_rate("normal", 0.0) == pytest.approx(0.01, abs=0.002)
    assert power.simulated_rate("normal", 4.0) > 0.99
