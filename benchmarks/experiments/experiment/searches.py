"""Step sizes that a search finds and records beside its script."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file


def cheapest(rates: Sequence[float], cost: Callable[[float], Any]) -> float:
    """The step size of the lowest cost; a single one is not tried."""
    return rates[0] if len(rates) == 1 else min(rates, key=cost)


def descend(score: Callable[[float], Any], first: float, factor: float = 2.0) -> float:
    """The step size of the best score: a factor up and down, until both are worse.

    Args:
        score: what a step size gives; the smaller the better.
        first: where to begin.
        factor: between step sizes, above 1.
    """
    best = first
    for by in (factor, 1.0 / factor):
        while score(best * by) < score(best):
            best *= by
    return best


def settings_file(name: str) -> Path:
    return Path(__file__).resolve().parents[1] / f"{name}_settings.json"


def is_recorded(name: str) -> bool:
    """Whether `--tune` of an experiment has written settings."""
    return settings_file(name).exists()


def recorded(name: str) -> dict[str, Any]:
    """Settings that `--tune` of an experiment wrote beside its script."""
    path = settings_file(name)
    if not path.exists():
        raise SystemExit(f"{path.name} is missing; python benchmarks/experiments/{name}.py --tune")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def write_recorded(name: str, settings: Mapping[str, Any]) -> None:
    """Record settings beside the script of an experiment."""
    replace_file(settings_file(name), plain_json.dumps(settings, indent=1) + b"\n")


class Trials:
    """What the search of an experiment has tried; nothing is tried twice."""

    def __init__(self, name: str) -> None:
        """Read what an earlier search has recorded."""
        self.name = name
        self.settings: dict[str, Any] = recorded(name) if is_recorded(name) else {}
        self.trials: list[dict[str, Any]] = self.settings.pop("trials", [])

    def score(self, trial: Mapping[str, Any], measure: Callable[[], float]) -> float:
        """The bits per byte of a trial, measured and recorded if it is a new one."""
        known = next((each for each in self.trials if trial.items() <= each.items()), None)
        if known is None:
            known = {**trial, "bits_per_byte": round(measure(), 4)}
            self.trials.append(known)
            self.write()
        return float(known["bits_per_byte"])

    def write(self) -> None:
        """Record the settings and the trials."""
        write_recorded(self.name, {**self.settings, "trials": self.trials})
