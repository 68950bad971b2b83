"""Parity of random models on few of them: right ones agree, and every fault shows."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow

MODELS = (2, 3)  # small ones: a Large, and a stack of both kinds of blocks


@pytest.fixture(scope="module")
def benchmark(load: Any) -> Any:
    return load("parity_false_failures")


def test_random_models_never_fail_and_their_faults_are_found(benchmark: Any) -> None:
    tally = benchmark.Tally()
    for number in MODELS:
        benchmark.examine(number, tally)
    assert tally.failed == []
    assert "operator" not in tally.missed
    assert "sign" not in tally.missed
    assert tally.planted == {"operator": 4, "sign": 2, "sign of any": 2}
