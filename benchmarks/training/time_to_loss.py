"""Seconds of training until a held-out loss: what trains, at which settings, and who is sooner.

Every arm runs at settings that a search found for it: the step size, with more of them until the
best has a worse one on either side, then momentum, then the amount of text after which its schedule
ends a little below the target, between two amounts that were tried. The search counts text and no
time, so a busy machine does not change what it finds.

Two arms are compared seed by seed, in runs beside each other: the geometric mean of the ratios of
their times, its 95 % interval by Student's t, and the two-sided p-value of a ratio of one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.claims import write_rows
from training.recording import BYTES, HeldOut, record

from mlxhog import TrainConfig

SETTINGS = Path(__file__).parent.with_name("time_to_loss_settings.json")
UNTOLD = "cannot be told"
SHORTER = 0.85  # factor between two amounts that are tried
MOST_TEXT = 3.0
"""Times the first amount of text that the search for one tries. What does not get there by then
(runs averaged once may never) is trained on the largest amount tried, and its runs do not reach."""

TORCH = {"workers": "torch:cpu*2", "threads": 1}
FOUR = {"workers": "torch:cpu*4", "threads": 1}
BOTH = {"workers": "mlx:cpu,torch:cpu", "threads": 1}
SPEED = {"strategy": "sync", "sync_shares": "speed"}
BY_BLOCKS = {"strategy": "hogwild", "blocks": "disjoint"}
ARMS = {
    "serial 1 thread": {"strategy": "serial", "workers": "torch:cpu", "threads": 1},
    "serial 2 threads": {"strategy": "serial", "workers": "torch:cpu", "threads": 2},
    "sync": {"strategy": "sync", **TORCH},
    "sync by speed": {**SPEED, **TORCH},
    "hogwild": {"strategy": "hogwild", **TORCH},
    "hogwild by blocks": {**BY_BLOCKS, **TORCH},
    "round-robin": {"strategy": "round_robin", **TORCH},
    "runs averaged once": {"strategy": "avg_runs", **TORCH},
    "sync, 4 workers": {"strategy": "sync", **FOUR},
    "sync by speed, 4 workers": {**SPEED, **FOUR},
    "hogwild, 4 workers": {"strategy": "hogwild", **FOUR},
    "hogwild by blocks, 4 workers": {**BY_BLOCKS, **FOUR},
    "sync by speed mlx+torch": {**SPEED, **BOTH},
    "hogwild mlx+torch": {"strategy": "hogwild", **BOTH},
}
# Arms that differ in threads, shares or backends only have the settings found for one of them.
TUNED_AS = {
    "serial 2 threads": "serial 1 thread",
    "sync by speed": "sync",
    "sync by speed, 4 workers": "sync, 4 workers",
    "sync by speed mlx+torch": "sync",
    "hogwild mlx+torch": "hogwild",
}


RATES = {
    "adamw": (5e-4, 7e-4, 1e-3, 1.5e-3, 3e-3, 6e-3),
    "muon": (
        3.5e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3, 8.5e-3, 1.2e-2, 1.7e-2,
        2.4e-2,
    ),
}  # fmt: skip
"""Step sizes that may be tried."""


@dataclass(frozen=True)
class Grid:
    """Where the search for an arm begins.

    Attributes:
        low: smallest step size that is tried in any case.
        high: largest one.
        beta1: momentum while step sizes are tried; None is the default's (.9, lock-free with four
            workers .95).
        other_beta1: tried at the best step size.
    """

    low: float
    high: float
    beta1: float | None = None
    other_beta1: tuple[float, ...] = ()


GRIDS = {
    "adamw": {arm: Grid(1e-3, 3e-3) for arm in ("serial 1 thread", "sync", "hogwild")},
    "muon": {
        "serial 1 thread": Grid(3e-3, 6e-3, None, (0.65, 0.7, 0.75, 0.8, 0.85, 0.95)),
        "sync": Grid(4.2e-3, 8.5e-3, 0.75, (0.55, 0.6, 0.65, 0.7, 0.8)),
        "hogwild": Grid(2.1e-3, 4.2e-3, None, (0.75, 0.8, 0.85, 0.95)),
        "hogwild by blocks": Grid(3e-3, 6e-3),
        "round-robin": Grid(3e-3, 6e-3),
        "runs averaged once": Grid(4.2e-3, 8.5e-3),
        "sync, 4 workers": Grid(6e-3, 1.2e-2, 0.75, (0.55, 0.6, 0.65, 0.7, 0.8)),
        "hogwild, 4 workers": Grid(2.1e-3, 4.2e-3, None, (0.8, 0.85, 0.9)),
        "hogwild by blocks, 4 workers": Grid(2.1e-3, 4.2e-3),
    },
}
BATCH_SIZES = {"adamw": 2, "muon": 4}
"""Sequences of a gradient, by what each rule trains best with in a minute."""


@dataclass(frozen=True)
class Target:
    """A loss to reach.

    Attributes:
        bits: held-out bits per byte.
        tokens: text with which step sizes are tried, by optimizer.
        eval_tokens: held-out text of one evaluation.
        text: what it is of, where that is not the default text.
        options: of `TrainConfig`, for that text.
        like: the target whose searched settings serve for this one, by its key.
        fixed: settings of every arm, where none are searched (tests).
        margin: bits per byte below it at which the chosen amount of text ends; more than seeds
            differ by, or some runs never get there.
    """

    bits: float
    tokens: Mapping[str, int]
    eval_tokens: int = 65_536
    text: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    like: str | None = None
    margin: float = 0.05
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, optimizer, arm):
        """What the search found for an arm.

        Raises:
            SystemExit: nothing was searched.
        """
        if self.fixed:
            return dict(self.fixed)
        searched = _document().get(self.like or self.key, {}).get(optimizer, {}).get("settings", {})
        name = TUNED_AS.get(arm, arm)
        if name not in searched:
            raise SystemExit(
                f"no settings were searched for {optimizer}, {name}, {self.key} bits per byte; "
                "run this script with --tune, at the same scale"
            )
        chosen = searched[name]
        return chosen

    def check(self, arms):
        """Ask for what was not searched, before hours are spent.

        Raises:
            SystemExit: nothing was searched for one of these optimizers and arms.
        """
        for optimizer, arm in arms:
            self.settings(optimizer, arm)

    @property
    def key(self):
        """Its name in the settings."""
        return f"{self.bits:g} {self.text}".rstrip()


def run_arm(arm, optimizer, seed, options):
    """Train with some options, keeping the parameters of every moment."""
    return record(keep_params=True, seed=seed, **arm_options(arm, optimizer), **options)


def arm_options(arm, optimizer):
    """Options of `TrainConfig` of an arm, without its searched settings."""
    batch_size = BATCH_SIZES[optimizer]
    return {
        **ARMS[arm], "optimizer": optimizer, "batch_size": batch_size, "schedule": "cosine",
    }  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """When a run reached its target.

    Attributes:
        seconds: of training; infinite where it did not.
        tokens: likewise.
        trained_s: of the whole run.
        tokens_per_s: over the whole run.
        staleness: mean over all workers.
    """

    seconds: float
    tokens: float
    trained_s: float
    tokens_per_s: float
    staleness: float


class Race:
    """Runs of arms to one target, and their times."""

    def __init__(self, target):
        """Open the held-out text."""
        self.target = target
        self._held_out = HeldOut(TrainConfig(**{**BYTES, **target.options}), target.eval_tokens)

    def seconds(self, arm, optimizer, seed, **options):
        """Train an arm at its settings; infinity where it does not reach the target."""
        return self.run(arm, optimizer, seed, **options).seconds

    def run(self, arm, optimizer, seed, **options):
        """Train an arm at its settings."""
        chosen = {**self.target.options, **self.target.settings(optimizer, arm), **options}
        run = run_arm(arm, optimizer, seed, chosen)
        crossing = self._held_out.crossing(run.points, self.target.bits)
        took, tokens = crossing or (math.inf, math.inf)
        speed = f"{run.result.tokens_per_s:7,.0f} tok/s"
        print(f"  seed {seed}  {optimizer:6} {arm:28} {took:6.1f} s  {speed}", flush=True)
        reports = run.result.workers
        late = sum(report.mean_staleness * report.steps for report in reports)
        steps = max(1, sum(report.steps for report in reports))
        whole = run.result
        return Reached(took, tokens, whole.seconds, whole.tokens_per_s, late / steps)

    def tune(self, optimizer, arms):
        """Search the settings of arms, and write them down; known trials are not repeated."""
        document = _document()
        searched = document.setdefault(self.target.key, {}).setdefault(optimizer, {})
        trials = searched.setdefault("trials", [])

        def trial(arm, tokens, point):
            key = {"arm": arm, "tokens": tokens, **point}
            for known in trials:
                if known == {**key, "bits_per_byte": known["bits_per_byte"]}:
                    return float(known["bits_per_byte"])
            options = {**self.target.options, **point, "tokens": tokens}
            params = run_arm(arm, optimizer, 0, options).points[-1].params
            assert params is not None
            trials.append({**key, "bits_per_byte": round(self._held_out.bits_per_byte(params), 4)})
            print(json.dumps(trials[-1]), flush=True)
            _write(document)
            return float(trials[-1]["bits_per_byte"])

        most = self.target.tokens[optimizer]
        for arm in dict.fromkeys(TUNED_AS.get(arm, arm) for arm in arms):
            grid = GRIDS[optimizer][arm]
            best = best_point(grid, RATES[optimizer], partial(trial, arm, most))
            limit = self.target.bits - self.target.margin
            tokens = enough(most, limit, partial(trial, arm, point=best))
            searched.setdefault("settings", {})[arm] = {**best, "tokens": tokens}
            _write(document)


def best_point(grid, rates, trial):
    """The step size, and momentum, with the lowest loss.

    Raises:
        SystemExit: the lowest or highest of `rates` is the best.
    """
    fixed = {} if grid.beta1 is None else {"beta1": grid.beta1}
    low, high = rates.index(grid.low), rates.index(grid.high)
    while True:
        losses = {k: trial({"lr": rates[k], **fixed}) for k in range(low, high + 1)}
        best = min(losses, key=losses.__getitem__)
        if low < best < high:
            break
        low, high = min(low, best - 1), max(high, best + 1)
        if low < 0 or high == len(rates):
            raise SystemExit(f"lr {rates[best]} is the last of RATES and the best; add others")
    points = [{"lr": rates[best], "beta1": beta1} for beta1 in grid.other_beta1]
    return min([{"lr": rates[best], **fixed}, *points], key=trial)


def enough(tokens, limit, trial):
    """The amount of text that ends at a loss, by its logarithm, between two that are tried.

    The largest one tried, where the loss is still above that after `MOST_TEXT` times the text.
    """
    losses = {tokens: trial(tokens)}
    while not min(losses.values()) <= limit:
        longer = int(max(losses) / SHORTER)
        if longer > MOST_TEXT * tokens:
            return max(losses)
        losses[longer] = trial(longer)
    while max(losses.values()) <= limit:
        shorter = int(min(losses) * SHORTER)
        losses[shorter] = trial(shorter)
    few = max(n for n, loss in losses.items() if loss > limit)
    many = min(n for n, loss in losses.items() if loss <= limit)
    return round(few * (many / few) ** ((losses[few] - limit) / (losses[few] - losses[many])))


def _document():
    document = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    return document


def _write(document):
    write_rows(SETTINGS, document)
