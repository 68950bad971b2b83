"""Summaries of staleness: per worker, from counts, values and recorded runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.checkpoint.run import Run
from mlxhog.theory import staleness


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200))
def test_a_summary_is_that_of_the_values(values: list[int]) -> None:
    found = staleness.of_histogram("w", Counter(values))
    assert (found.name, found.steps, found.max) == ("w", len(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))
    ordered = sorted(values)
    assert found.p50 == ordered[(len(values) + 1) // 2 - 1]
    assert found.p99 == ordered[-(-99 * len(values) // 100) - 1]


def test_a_worker_without_steps_has_no_staleness() -> None:
    assert staleness.of_histogram("w", {}).steps == 0


def test_counts_of_a_staleness_weigh_as_often_as_it_was_seen() -> None:
    assert staleness.of_histogram("w", {7: 1, 0: 99}) == staleness.Staleness(
        name="w", steps=100, mean=0.07, p50=0, p99=0, max=7
    )
    assert staleness.of_histogram("w", {7: 2, 0: 98}).p99 == 7


def test_each_worker_of_a_run_has_its_own_distribution_over_all_commands(tmp_path: Path) -> None:
    def line(pid: int, **histograms: dict[int, int]) -> dict[str, object]:
        return {
            "supervisor_pid": pid,
            "step": 40,
            "elapsed_s": 1.0,
            "lost_update_rate": 0.0,
            "workers": [
                {
                    "slot": slot,
                    "backend": backend,
                    "steps": sum(histogram.values()),
                    "dropped": 0,
                    "mean_staleness": 1.0,
                    "max_staleness": max(histogram),
                    "staleness": histogram,
                }
                for slot, (backend, histogram) in enumerate(histograms.items(), start=1)
            ],
        }

    run = Run(tmp_path)
    lines = [line(1, mlx={0: 30}, torch={4: 10}), line(2, mlx={0: 29, 1: 1}, torch={8: 10})]
    run.metrics_path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = staleness.of_run(run, "lossless")
    assert found is not None
    assert found.by_worker == (
        staleness.Staleness(name="1 mlx", steps=60, mean=1 / 60, p50=0, p99=1, max=1),
        staleness.Staleness(name="2 torch", steps=20, mean=6.0, p50=4, p99=8, max=8),
    )
