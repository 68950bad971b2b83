"""Runs of classic problems, side by side: same data, same order of the rows, same native loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from harness.claims import Sample, Twin
from harness.estimates import Ratio
from harness.interleaved import with_twin
from harness.machine import cores

from experiment.figures import inks, label_lines, new_panels
from experiment.record import say
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.result import ClassicResult
from mlxhog.classic.run import train


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
    def of(cls, name, **options):
        """An arm with these options of `mlxhog classic`."""
        return cls(name, ClassicConfig(**options))


Runs = dict[str, list[ClassicResult]]
"""Of each arm, one by each seed."""


def interleaved(problem, arms, seeds, *, name=""):
    """Run all arms with each seed, in turns, so that all see the same machine.

    The first arm runs an epoch before anything counts, and twice with each seed (A/A).

    Args:
        problem: of all arms.
        arms: the first one is compared with itself.
        seeds: of the order of the rows.
        name: of the problem, where it is not its own.

    Returns:
        the results by arm, and whether the first arm differs from itself in seconds.
    """
    configs = {arm.name: arm.config for arm in arms}
    first = arms[0]

    def run(arm, seed):
        result = train(problem, replace(configs[arm], seed=seed))
        say(
            f"{name or problem.name} {arm}: objective {result.objective:.5g} in "
            f"{result.seconds:.3g} s, {result.status}"
        )
        return result

    train(problem, replace(first.config, epochs=1))
    runs, again = with_twin(seeds, configs, run, twin=first.name)
    twin = f"{name or problem.name}, {first.name}, seconds"
    return runs, [Twin.of(twin, seconds(runs[first.name]), seconds(again))]


def seconds(results):
    """Seconds of all epochs, of each run."""
    return [result.seconds for result in results]


def ends(results, measure):
    """A measure after the last epoch, of each run."""
    return [result.measures[measure] for result in results]


def speedup(slow, fast):
    """How many times as fast the second are, by seconds of all epochs."""
    return Ratio.of(seconds(slow), seconds(fast))


def summary(results, *measures):
    """Median and range of the seconds of all epochs, and the median of each measure at the end."""
    times = Sample.of(seconds(results))
    medians = {name: Sample.of(ends(results, name)).median for name in measures}
    return {"seconds": times.median, "fastest": times.low, "slowest": times.high, **medians}


def with_a_core(counts):
    """The most workers that have a core each here; two at least."""
    return max(count for count in counts if count <= max(2, len(cores())))


def seconds_to(result, target):
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


def curve(result, measure):
    """A measure after every epoch."""
    return [epoch.measures[measure] for epoch in result.epochs]


def time_bars(axes, rows, ink, name):
    """Draw the seconds of rows of `summary` by their workers, with the range over seeds."""
    middles = [row["seconds"] for row in rows]
    ranges = [
        [middle - row["fastest"] for middle, row in zip(middles, rows, strict=True)],
        [row["slowest"] - middle for middle, row in zip(middles, rows, strict=True)],
    ]
    at = [row["workers"] for row in rows]
    axes.errorbar(at, middles, yerr=ranges, fmt="o-", color=ink, capsize=2, label=name)


def workers_figure(outcome, column, names):
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
    colors = inks(names.values())
    for value, name in names.items():
        ink = colors[name]
        rows = [row for row in outcome.table if row[column] == value]
        counts = [row["workers"] for row in rows]
        time_bars(times, rows, ink, name)
        errors.plot(counts, [row["test_error"] for row in rows], "o-", color=ink, label=name)
        trace = outcome.results["train_error"][f"{value} {counts[-1]}"]
        course.plot(range(1, len(trace) + 1), trace, color=ink, label=f"{name}, {counts[-1]}")
    every = sorted({row["workers"] for row in outcome.table})
    for axes in (times, errors):
        axes.set_xticks(every)
    label_lines(course)
    return figure, times, errors
