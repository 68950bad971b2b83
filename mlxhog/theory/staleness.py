"""Staleness of the updates of a worker or a run, counted in updates by others.

Staleness is the number of updates by others between a worker's read and its write. With P workers
that always have a gradient in flight its mean over all updates is P - 1, whatever their speeds:
each update falls between the read and the write of the P - 1 others. Its largest value has no such
limit.

The theory's tau is a lag in updates. It is no property of a model, and not the number of workers
either: it is read off a run that happened, one of the user's or a short one made for the purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.arena.layout import PROBE_FLOATS
from mlxhog.checkpoint.run import Run
from mlxhog.config.limits import said
from mlxhog.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """The distribution of one worker's staleness, or of a whole run's, in updates.

    Attributes:
        name: of the worker.
        steps: updates it is made of.
        mean: average.
        p50: median.
        p99: 99th percentile.
        max: largest.
    """

    name: str
    steps: int
    mean: float
    p50: int
    p99: int
    max: int


def of_histogram(name: str, histogram: Mapping[int, int]) -> Staleness:
    """Summarise a histogram: how many updates had which staleness."""
    steps = sum(histogram.values())
    if steps == 0:
        return Staleness(name=name, steps=0, mean=0.0, p50=0, p99=0, max=0)
    values = sorted(histogram)
    ends = np.cumsum([histogram[value] for value in values])
    return Staleness(
        name=name,
        steps=steps,
        mean=sum(value * count for value, count in histogram.items()) / steps,
        p50=values[int(np.searchsorted(ends * 100, steps * 50))],
        p99=values[int(np.searchsorted(ends * 100, steps * 99))],
        max=values[-1],
    )


# -- staleness of a run that happened --------------------------------------------------------------

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class ObservedStaleness:
    """Staleness that was observed: updates by others between a step's read and its write.

    Attributes:
        source: "run" or "probe".
        workers: how many there were.
        write: how they added their steps.
        steps: how many were observed.
        mean: over the steps.
        largest: of any step.
        histogram: staleness -> steps; empty for a run recorded before there was one.
        lost_update_rate: share of increments that never arrived; None where nobody looked.
        tokens_per_s: of all workers together; None where it is not known.
        by_worker: the distribution of each; slow workers are later than fast ones.
    """

    source: str
    workers: int
    write: str
    steps: int
    mean: float
    largest: int
    histogram: Mapping[int, int]
    lost_update_rate: float | None
    tokens_per_s: float | None
    by_worker: tuple[Staleness, ...] = ()

    @property
    def increments(self) -> int:
        """Increments that the lost ones are counted among: each step adds 1 to every probe."""
        return self.steps * PROBE_FLOATS

    def quantile(self, share: float) -> int | None:
        """The smallest staleness that `share` of the steps do not exceed; None without a histogram.

        Raises:
            ValueError: `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is for a share between 0 and 1, got {share}")
        if not self.histogram:
            return None
        lags = sorted(self.histogram)
        below = np.cumsum([self.histogram[lag] for lag in lags])
        return lags[int(np.searchsorted(below, share * below[-1] - 1e-9))]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "workers": self.workers,
            "write": self.write,
            "steps": self.steps,
            "mean": self.mean,
            **{f"p{100 * share:g}": self.quantile(share) for share in QUANTILES},
            "max": self.largest,
            "histogram": {str(lag): steps for lag, steps in self.histogram.items()},
            "lost_update_rate": self.lost_update_rate,
            "increments": self.increments,
            "tokens_per_s": self.tokens_per_s,
            "by_worker": [asdict(one) for one in self.by_worker],
        }


def of_run(run: Run, write: str) -> ObservedStaleness | None:
    """Read what a run recorded of all commands that trained it; None where it took no step.

    Args:
        run: the run.
        write: how its workers add their steps.

    Raises:
        RunError: its metrics are damaged.
    """
    lines = _commands(run)
    try:
        return _summarize(lines, write) if lines else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.metrics_path} holds a line that is no progress of a training run ({said(error)})"
        ) from error


def _summarize(lines: list[dict[str, Any]], write: str) -> ObservedStaleness:
    histogram: Counter[int] = Counter()
    by_worker: dict[tuple[int, str], Counter[int]] = {}
    steps, total, rates = 0, 0.0, []
    largest = 0
    for line in lines:
        for lag, count in line.get("staleness", {}).items():
            histogram[int(lag)] += int(count)
        for worker in line["workers"]:
            if "staleness" in worker:
                own = by_worker.setdefault((worker["slot"], worker["backend"]), Counter())
                own.update({int(lag): n for lag, n in worker["staleness"].items()})
            applied = worker["steps"] - worker["dropped"]
            steps += applied
            total += applied * worker["mean_staleness"]
            largest = max(largest, worker["max_staleness"])
        taken = sum(worker["steps"] for worker in line["workers"])
        rates.append((taken, line["lost_update_rate"]))
    known = [(taken, rate) for taken, rate in rates if rate is not None]
    weight = sum(taken for taken, _ in known)
    return ObservedStaleness(
        source="run",
        workers=len(lines[-1]["workers"]),
        write=write,
        steps=sum(histogram.values()) or steps,
        mean=mean_of(histogram) if histogram else total / steps if steps else 0.0,
        largest=max([largest, *histogram]),
        histogram=dict(sorted(histogram.items())),
        lost_update_rate=sum(n * rate for n, rate in known) / weight if weight else None,
        tokens_per_s=lines[-1].get("tokens_per_s"),
        by_worker=summaries(by_worker),
    )


def _commands(run: Run) -> list[dict[str, Any]]:
    """The last line of each command that trained the run: workers count anew with every one."""
    last: list[dict[str, Any]] = []
    for line in run.read_metrics():
        if not line.get("step"):
            continue
        if not all(isinstance(line.get(name, 0), int | float) for name in ("step", "elapsed_s")):
            raise RunError(f"{run.metrics_path} holds a step or a time that is no number")
        if last and _same_command(last[-1], line):
            last.pop()
        last.append(line)
    return last


def _same_command(before: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    pids = before.get("supervisor_pid"), line.get("supervisor_pid")
    return (
        pids[0] == pids[1]
        and line["step"] >= before["step"]
        and line.get("elapsed_s", 0.0) >= before.get("elapsed_s", 0.0)
    )


def mean_of(histogram: Mapping[int, int]) -> float:
    """Mean staleness of a histogram that holds a step or more."""
    return sum(lag * steps for lag, steps in histogram.items()) / sum(histogram.values())


def summaries(histograms: Mapping[tuple[int, str], Mapping[int, int]]) -> tuple[Staleness, ...]:
    """Summarise each worker's histogram, by (slot, backend); a worker without steps has none."""
    return tuple(
        of_histogram(f"{slot} {backend}", own)
        for (slot, backend), own in sorted(histograms.items())
        if own
    )
