"""Seconds of training until a held-out loss: what trains, at which settings, and who is sooner.

Every arm runs at settings that a search found for it: step size, momentum and batch (`AXES`, the
same for every arm), then the amount of text after which its schedule ends a little below the
target, between two amounts that were tried. The search counts text and no time, so a busy machine
does not change what it finds. The settings recorded so far are of an earlier search, which tried
no batch, and momentum of some arms only.

Two arms are compared seed by seed, in runs beside each other: the geometric mean of the ratios of
their times, its 95 % interval by Student's t, and the two-sided p-value of a ratio of one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.claims import write_rows
from harness.interleaved import with_twin
from training.recording import BYTES, HeldOut, record

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


AXES = {
    "adamw": {
        "lr": (5e-4, 7e-4, 1e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3, 8.5e-3),
        "beta1": (0.75, 0.8, 0.85, 0.9, 0.95),
        "batch_size": (2, 4, 8),
    },
    "muon": {
        "lr": (1e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3, 8.5e-3, 1.2e-2, 1.7e-2),
        "beta1": (0.55, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95),
        "batch_size": (2, 4, 8),
    },
}
"""What the search tries of every arm, one axis after the other."""
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
    return record(keep_params=True, seed=seed, **{**arm_options(arm, optimizer), **options})


def arm_options(arm, optimizer):
    """Options of `TrainConfig` of an arm, without its searched settings."""
    return {
        **ARMS[arm], "optimizer": optimizer, "batch_size": BATCH_SIZES[optimizer],
        "schedule": "cosine",
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


@dataclass(frozen=True)
class Race:
    """Arms under conditions, all arms of a seed before the next seed.

    Attributes:
        arms: of each condition, by its name.
        seeds: of the trainings.
        quantity: (condition, arm, seed) -> what a training is worth.
    """

    arms: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    quantity: Callable[[str, Any, int], Any]

    def run(self, *, twin):
        """Run; returns condition -> arm -> values by seed, and condition -> those of the twin.

        Args:
            twin: the arm that runs a second time in each turn (A/A).
        """
        table, again = {}, {}
        for name, arms in self.arms.items():
            print(name, flush=True)
            run = partial(self.quantity, name)
            table[name], again[name] = with_twin(self.seeds, arms, run, twin=twin)
        return table, again


class Course:
    """The way to one target: trainings, their times, and the search for their settings."""

    def __init__(self, target):
        """Open the held-out text."""
        self.target = target
        self._held_out = HeldOut({**BYTES, **target.options}, target.eval_tokens)

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
        reports, whole = run.result.workers, run.result
        late = sum(report.mean_staleness * report.steps for report in reports)
        steps = max(1, sum(report.steps for report in reports))
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
            trials.append({**key, "bits_per_byte": round(self._held_out.bits_per_byte(params), 4)})
            print(json.dumps(trials[-1]), flush=True)
            _write(document)
            return float(trials[-1]["bits_per_byte"])

        most = self.target.tokens[optimizer]
        for arm in dict.fromkeys(TUNED_AS.get(arm, arm) for arm in arms):
            best = tuned(AXES[optimizer], partial(trial, arm, most))
            limit = self.target.bits - self.target.margin
            tokens = enough(most, limit, partial(trial, arm, point=best))
            searched.setdefault("settings", {})[arm] = {**best, "tokens": tokens}
            _write(document)


def tuned(axes, trial):
    """The point with the lowest loss: one axis after the other, each at the best of those before.

    So every arm gets as many trials: all values of the first axis at the middle of the others, and
    of each further axis those that are new.

    Raises:
        SystemExit: the best value of the first axis is at its end.
    """
    point = {axis: values[len(values) // 2] for axis, values in axes.items()}
    for k, (axis, values) in enumerate(axes.items()):
        losses = {value: trial({**point, axis: value}) for value in values}
        point[axis] = best = min(losses, key=losses.get)
        if k == 0 and best in (values[0], values[-1]):
            raise SystemExit(f"{axis} {best} is the last of its axis and the best; widen AXES")
    return point


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
