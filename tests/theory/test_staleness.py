"""Summaries of staleness: per worker, from counts and values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.theory import staleness


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200))
def test_a_summary_is_that_of_the_values(values: list[int]) -> None:
    found = staleness.of_values("w", values)
    assert (found.name, found.steps, found.max) == ("w", len(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))
    ordered = sorted(values)
    assert found.p50 == ordered[(len(values) + 1) // 2 - 1]
    assert found.p99 == ordered[-(-99 * len(values) // 100) - 1]


def test_a_worker_without_steps_has_no_staleness() -> None:
    assert staleness.of_values("w", []).steps == 0


def test_counts_of_a_staleness_weigh_as_often_as_it_was_seen() -> None:
    assert staleness.of_histogram("w", {7: 1, 0: 99}) == staleness.Staleness(
        name="w", steps=100, mean=0.07, p50=0, p99=0, max=7
    )
    assert staleness.of_histogram("w", {7: 2, 0: 98}).p99 == 7
