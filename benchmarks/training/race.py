"""Seconds of training until a validation loss: what trains, at which settings, and who is sooner.

Every arm runs at settings that one search found for it (`harness.tuning`): learning rate, momentum
and batch, on the same axes for every arm, then the amount of text after which its schedule ends a
little below the target, between two amounts that were tried. The search counts text and no time, so
a busy machine does not change what it finds. Settings recorded before this search tried no batch,
and momentum of some arms only.

Two arms are compared seed by seed, in runs beside each other: the geometric mean of the ratios of
their times, its 95 % interval by Student's t, and the two-sided p-value of a ratio of one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from harness import tuning
from harness.frame import say
from training.recording import BYTES, HeldOut, mean_staleness, record

SETTINGS = "time_to_loss"
SHORTER = 0.85  # factor between two amounts that are tried
MAX_TEXT = 3.0
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
    "speed-weighted sync": {**SPEED, **TORCH},
    "collect": {"strategy": "collect", **TORCH},
    "sync, one backup": {"strategy": "sync", "backup_workers": 1, **TORCH},
    "ssp": {"strategy": "ssp", **TORCH},
    "hogwild": {"strategy": "hogwild", **TORCH},
    "hogwild, racy": {"strategy": "hogwild", "write": "racy", **TORCH},
    "hogwild by blocks": {**BY_BLOCKS, **TORCH},
    "round-robin": {"strategy": "round_robin", **TORCH},
    "runs averaged once": {"strategy": "avg_runs", **TORCH},
    "sync, 4 workers": {"strategy": "sync", **FOUR},
    "speed-weighted sync, 4 workers": {**SPEED, **FOUR},
    "collect, 4 workers": {"strategy": "collect", **FOUR},
    "hogwild, 4 workers": {"strategy": "hogwild", **FOUR},
    "hogwild by blocks, 4 workers": {**BY_BLOCKS, **FOUR},
    "speed-weighted sync mlx+torch": {**SPEED, **BOTH},
    "hogwild mlx+torch": {"strategy": "hogwild", **BOTH},
    "collect mlx+torch": {"strategy": "collect", **BOTH},
}
TUNED_AS = {
    "serial 2 threads": "serial 1 thread", "speed-weighted sync": "sync", "collect": "sync",
    "sync, one backup": "sync", "hogwild, racy": "hogwild", "ssp": "hogwild",
    "speed-weighted sync, 4 workers": "sync, 4 workers", "collect, 4 workers": "sync, 4 workers",
    "speed-weighted sync mlx+torch": "sync", "collect mlx+torch": "sync",
    "hogwild mlx+torch": "hogwild",
}  # fmt: skip
"""Arms that differ in threads, shares, claims, writes or backends only have one arm's settings."""

BATCHES = (2, 4, 8)
AXES = {
    "adamw": {
        "lr": (5e-4, 7e-4, 1e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3, 8.5e-3),
        "beta1": (0.75, 0.8, 0.85, 0.9, 0.95), "batch_size": BATCHES,
    },
    "muon": {
        "lr": (1e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3, 8.5e-3, 1.2e-2, 1.7e-2),
        "beta1": (0.55, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95), "batch_size": BATCHES,
    },
}  # fmt: skip
"""What the search tries of every arm, one axis after the other."""
BATCH_SIZES = {"adamw": 2, "muon": 4}
"""Sequences of a gradient, by what each rule trains best with in a minute."""


@dataclass(frozen=True)
class Target:
    """A loss to reach.

    Attributes:
        bits: validation bits per byte.
        tokens: text with which settings are tried, by optimizer.
        val_subset_tokens: validation text of one evaluation.
        options: of `TrainConfig`, for another text or model than the default.
        like: key of the target whose searched settings serve for this one.
        fixed: settings of every arm, where none are searched.
        margin: bits per byte below it at which the chosen amount of text ends; more than seeds
            differ by, or some runs never get there.
    """

    bits: float
    tokens: Mapping[str, int] = field(default_factory=dict)
    val_subset_tokens: int = 65_536
    options: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""
    margin: float = 0.05
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def name(self, optimizer, arm):
        """Of an arm's settings among those that are recorded."""
        return f"{self.like or f'{self.bits:g}'} {optimizer}, {TUNED_AS.get(arm, arm)}"

    def settings(self, optimizer, arm):
        """What the search found for an arm.

        Raises:
            SystemExit: nothing was searched.
        """
        name = self.name(optimizer, arm)
        return dict(self.fixed or tuning.settings(SETTINGS, [name])[name])


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
        seconds, tokens: of training until then; infinite where it did not.
        trained_s: seconds of the whole run.
        tokens_per_s: over the whole run.
        staleness: mean over all workers.
    """

    seconds: float
    tokens: float
    trained_s: float
    tokens_per_s: float
    staleness: float


class Course:
    """The way to one target: trainings, their times, and the search for their settings."""

    def __init__(self, target):
        """Open the validation text."""
        self.target = target
        self._validation = HeldOut({**BYTES, **target.options}, target.val_subset_tokens)

    def run(self, arm, optimizer, seed, **options):
        """Train an arm at its settings."""
        chosen = {**self.target.options, **self.target.settings(optimizer, arm), **options}
        run = record(keep_params=True, seed=seed, **{**arm_options(arm, optimizer), **chosen})
        took, tokens = self._validation.crossing(run.points, self.target.bits) or (math.inf,) * 2
        whole = run.result
        say(f"  seed {seed}  {optimizer:6} {arm:28} {took:6.1f} s  {whole.tokens_per_s:,.0f} tok/s")
        late = mean_staleness(whole.workers)
        return Reached(took, tokens, whole.seconds, whole.tokens_per_s, late)

    def tune(self, optimizer, arms):
        """Search the settings of arms, and write them down."""
        own = dict.fromkeys(TUNED_AS.get(arm, arm) for arm in arms)
        names = {self.target.name(optimizer, arm): arm for arm in own}
        axes = {name: AXES[optimizer] for name in names}
        tuning.tune(SETTINGS, axes, lambda name, point: self._bits(names[name], optimizer, **point))
        for name, arm in names.items():
            point = tuning.settings(SETTINGS)[name]
            if "tokens" not in point:
                trial = partial(self._bits, arm, optimizer, **point)
                most, limit = self.target.tokens[optimizer], self.target.bits - self.target.margin
                tuning.record(SETTINGS, name, tokens=enough(most, limit, trial))

    def _bits(self, arm, optimizer, tokens=0, **point):
        options = {**self.target.options, **point}
        options["tokens"] = tokens or self.target.tokens[optimizer]
        run = record(keep_params=True, seed=0, **{**arm_options(arm, optimizer), **options})
        return round(self._validation.bits_per_byte(run.points[-1].params), 4)


def enough(tokens, limit, trial):
    """The amount of text that ends at a loss, by its logarithm, between two that are tried.

    The largest one tried, where the loss is still above that after `MAX_TEXT` times the text.
    """
    losses = {tokens: trial(tokens=tokens)}
    while not min(losses.values()) <= limit:
        longer = int(max(losses) / SHORTER)
        if longer > MAX_TEXT * tokens:
            return max(losses)
        losses[longer] = trial(tokens=longer)
    while max(losses.values()) <= limit:
        shorter = int(min(losses) * SHORTER)
        losses[shorter] = trial(tokens=shorter)
    few = max(n for n, loss in losses.items() if loss > limit)
    many = min(n for n, loss in losses.items() if loss <= limit)
    return round(few * (many / few) ** ((losses[few] - limit) / (losses[few] - losses[many])))


def reached_json(run):
    """A run for a file of JSON: what was not reached is None."""
    return {name: None if value == math.inf else value for name, value in asdict(run).items()}


def reached_of(value):
    """It, read back."""
    return Reached(**{name: math.inf if one is None else one for name, one in value.items()})
