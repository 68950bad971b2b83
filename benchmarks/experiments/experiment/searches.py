"""Step sizes that a search finds and records beside its script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from harness.claims import write_rows


@dataclass(frozen=True)
class Search:
    """Step sizes that were tried.

    Attributes:
        costs: of each, in any order; the smaller the better, infinite or None if it diverged.
    """

    costs: Mapping[float, Any]

    @property
    def best(self):
        """The step size of the lowest cost, the smallest of several."""
        return min(sorted(self.costs), key=lambda rate: _comparable(self.costs[rate]))

    @property
    def missing_side(self):
        """-1 or 1 if no smaller or no larger step size is worse than the best; else 0."""
        lowest, best = _comparable(self.costs[self.best]), self.best
        worse = [rate for rate, cost in self.costs.items() if _comparable(cost) > lowest]
        if not any(rate < best for rate in worse):
            return -1
        return 0 if any(rate > best for rate in worse) else 1

    def to_json(self):
        """Costs by step size; None where a training diverged."""
        return {
            f"{rate:.6g}": None if _comparable(self.costs[rate]) == math.inf else self.costs[rate]
            for rate in sorted(self.costs)
        }


def _comparable(cost):
    return math.inf if cost is None or cost != cost else cost


def search(rates, cost, *, factor=2.0, most=8):
    """Try step sizes, and further ones until one on either side of the best is worse.

    Args:
        rates: to begin with; a single one is not tried.
        cost: of a step size, comparable; the smaller the better.
        factor: between a step size at the edge and the next one, above 1.
        most: number of further step sizes.

    Raises:
        SystemExit: the best of them is still at an edge.
    """
    if len(rates) == 1:
        return Search({rates[0]: None})
    costs = {rate: cost(rate) for rate in rates}
    for _ in range(most):
        side = Search(costs).missing_side
        if side == 0:
            return Search(costs)
        rate = max(costs) * factor if side > 0 else min(costs) / factor
        costs[rate] = cost(rate)
    if Search(costs).missing_side == 0:
        return Search(costs)
    raise SystemExit(
        f"no step size of {min(costs):g} to {max(costs):g} has a worse one on either side; begin "
        "the search elsewhere, or check that the step size changes the cost at all"
    )


def descend(score, first, factor=2.0):
    """The step size of the best score: a factor up and down, until both are worse.

    An equal score is no end: one step size beyond it is tried, too.

    Args:
        score: what a step size gives; the smaller the better.
        first: where to begin.
        factor: between step sizes, above 1.
    """
    best = first
    for by in (factor, 1.0 / factor):
        while True:
            near, far = best * by, best * by * by
            if score(near) < score(best):
                best = near
            elif score(near) == score(best) and score(far) < score(best):
                best = far
            else:
                break
    return best


def settings_file(name):
    return Path(__file__).resolve().parents[1] / f"{name}_settings.json"


def is_recorded(name):
    """Whether `--tune` of an experiment has written settings."""
    return settings_file(name).exists()


def recorded(name):
    """Settings that `--tune` of an experiment wrote beside its script."""
    path = settings_file(name)
    if not path.exists():
        raise SystemExit(f"{path.name} is missing; python benchmarks/experiments/{name}.py --tune")
    settings = json.loads(path.read_text())
    return settings


def write_recorded(name, settings):
    """Record settings beside the script of an experiment."""
    write_rows(settings_file(name), settings)


class Trials:
    """What the search of an experiment has tried; nothing is tried twice, also by threads."""

    def __init__(self, name):
        """Read what an earlier search has recorded."""
        self.name = name
        self.settings = recorded(name) if is_recorded(name) else {}
        self.trials = self.settings.pop("trials", [])
        self._writing = Lock()

    def score(self, trial, measure):
        """The bits per byte of a trial, measured and recorded if it is a new one."""
        known = next((each for each in self.trials if trial.items() <= each.items()), None)
        if known is None:
            known = {**trial, "bits_per_byte": round(measure(), 4)}
            with self._writing:
                self.trials.append(known)
                self.write()
        return float(known["bits_per_byte"])

    def write(self):
        """Record the settings and the trials."""
        write_recorded(self.name, {**self.settings, "trials": self.trials})
