"""Runs of classic problems, side by side: same data, same order of the rows, same native loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.claims import Sample
from harness.interleaved import take_turns
from harness.machine import cores

from experiment.figures import INKS, Figure, legend, new_panels
from experiment.record import Outcome, say
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problem import Problem
from mlxhog.classic.result import ClassicResult
from mlxhog.classic.session import train


@dataclass(frozen=True)
class Arm:
    """One way to run a problem.

    Attributes:
        name: in tables and figures.
        config: of its runs; the seed is set for each.
    """

    name: str
    config: ClassicConfig

    @classmethod
    def of(cls, name: str, **options: Any) -> Arm:
        """An arm with these options of `mlxhog classic`."""
        return cls(name, ClassicConfig(**options))


def interleaved(
    problem: Problem, arms: Sequence[Arm], *, repeats: int, seed: int = 0
) -> dict[str, list[ClassicResult]]:
    """Run all arms one after the other, `repeats` times over, so that all see the same machine."""
    configs = {arm.name: arm.config for arm in arms}

    def run(name: str, seed: int) -> ClassicResult:
        result = train(problem, replace(configs[name], seed=seed))
        say(
            f"{problem.name} {name}: objective {result.objective:.5g} in {result.seconds:.3g} s, "
            f"{result.status}"
        )
        return result

    return take_turns(range(seed, seed + repeats), configs, run)


def seconds(results: Sequence[ClassicResult]) -> Sample:
    """Seconds of all epochs, over repeats."""
    return Sample.of([result.seconds for result in results])


def summary(results: Sequence[ClassicResult], *measures: str) -> dict[str, float]:
    """Median seconds of all epochs, and each measure after the last, over repeats."""
    return {"seconds": seconds(results).median, **{name: last(results, name) for name in measures}}


def with_a_core(counts: Sequence[int]) -> int:
    """The most workers that have a core each here; two at least."""
    return max(count for count in counts if count <= max(2, len(cores())))


def seconds_to(result: ClassicResult, target: float) -> float:
    """Seconds of the epochs up to the first whose objective is at most `target`; NaN if none is.

    The last epoch counts in proportion: as if the objective fell evenly in it.
    """
    passed, before = 0.0, result.initial["objective"]
    for epoch in result.epochs:
        if epoch.objective <= target:
            fall = before - epoch.objective
            share = (before - target) / fall if fall > 0 else 1.0
            return passed + epoch.seconds * min(max(share, 0.0), 1.0)
        passed, before = passed + epoch.seconds, epoch.objective
    return math.nan


def last(results: Sequence[ClassicResult], measure: str) -> float:
    """The median of a measure after the last epoch."""
    return Sample.of([result.measures[measure] for result in results]).median


def curve(result: ClassicResult, measure: str) -> list[float]:
    """A measure after every epoch."""
    return [epoch.measures[measure] for epoch in result.epochs]


def ratios(base: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, Sample]:
    """`base` over each of the others, repeat by repeat."""
    return {name: Sample.of_ratios(base, values) for name, values in others.items()}


def workers_figure(
    outcome: Outcome, column: str, names: Mapping[Any, str]
) -> tuple[Figure, Any, Any]:
    """Time and test error by workers, and training error by epoch with the most of them.

    Args:
        outcome: whose results hold training errors by "VALUE WORKERS".
        column: of the table, by which it is divided.
        names: what lines are called, by the value of that column.

    Returns:
        the figure, its axes of times and those of test errors.
    """
    figure, (times, errors, course) = new_panels(
        ("workers", "seconds of all epochs", "Time"),
        ("workers", "test error", "Test error"),
        ("epoch", "training error", "Training error, most workers"),
    )
    for ink, (value, name) in zip(INKS, names.items(), strict=False):
        rows = [row for row in outcome.table if row[column] == value]
        counts = [row["workers"] for row in rows]
        times.plot(counts, [row["seconds"] for row in rows], "o-", color=ink, label=name)
        errors.plot(counts, [row["test_error"] for row in rows], "o-", color=ink, label=name)
        trace = outcome.results["train_error"][f"{value} {counts[-1]}"]
        course.plot(range(1, len(trace) + 1), trace, color=ink, label=f"{name}, {counts[-1]}")
        for axes in (times, errors):
            axes.set_xticks(counts)
    legend(course)
    return figure, times, errors
