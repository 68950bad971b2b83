"""What a minute of training is worth: tokens of bytes or of pieces of words, depth, step sizes.

    python benchmarks/experiments/minute.py          a sixteenth of the text, three seeds: 2 minutes
    python benchmarks/experiments/minute.py --full   all of it, five seeds: an hour

Every arm gets the compute of the same number of byte tokens in `tiny`: its own tokens are these,
divided by what one of them costs. Nothing is timed, so a busy machine changes no loss.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

from experiment.figures import INKS, Figure, new_panel
from experiment.record import FAILS, HOLDS, Compared, Experiment, Outcome, Scale, run, say
from harness.claims import Claim, Sample
from harness.machine import cores
from training.alone import ALONE, train_alone

from mlxhog import TrainConfig

BUDGET = {"order": 130, "quick_s": 120, "full_s": 1800}
ABOUT = Experiment(
    name="minute",
    title="What a minute of training is worth",
    source="the defaults of mlxhog train",
    about=(
        "The default of version 0.2 (bytes, four blocks of width 128), and the tokenizer of the "
        "text, depth and step sizes of today's default, one after another. All arms have the same "
        "budget in compute: tokens, divided by the relative cost of one."
    ),
    packages=("torch",),
)
MINUTE = 971_000  # byte tokens that two cores train in a minute of `tiny`
HELD_OUT = 863_914  # bytes
EQUAL = {"embedding_lr": 1, "head_lr": 1, "scalar_lr": 1}
PIECES: Mapping[str, Any] = {"tokenizer": "sotu"}


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget.

    Attributes:
        options: of `TrainConfig`.
        cost: of a token, in tokens of the first arm.
        bytes_per_token: of held-out text.
    """

    options: Mapping[str, Any]
    cost: float
    bytes_per_token: float = field(default=4.34, kw_only=True)

    def bits(self, scale: Scale, seed: int) -> float:
        """Held-out bits per byte at the end."""
        minute = scale.pick(tiny=4096, quick=MINUTE / 16, full=MINUTE)
        held_out = scale.pick(tiny=4096, quick=HELD_OUT / 16, full=HELD_OUT)
        config = TrainConfig(**{**ALONE, **self.options, "seed": seed}, steps=1)
        steps = round(minute / self.cost / (config.batch_size * config.seq_len))
        return train_alone(
            TrainConfig(**{**ALONE, **self.options, "seed": seed}, steps=steps),
            round(held_out / self.bytes_per_token),
        )


BEFORE, NOW = "bytes, 4 blocks (the default of 0.2)", "4,096 pieces, 2 blocks, rates by group"
ARMS: Mapping[str, Arm] = {
    BEFORE: Arm({"model": "tiny", "tokenizer": "bytes", "lr": 0.0042}, 1.0, bytes_per_token=1.0),
    "4,096 pieces, 4 blocks": Arm({"model": "tiny", "lr": 0.0042, **PIECES, **EQUAL}, 1.5),
    "4,096 pieces, 4 blocks, rates by group": Arm({"model": "tiny", **PIECES}, 1.5),
    "4,096 pieces, 2 blocks": Arm({"model": "minute", **PIECES, **EQUAL}, 1.0),
    NOW: Arm({"model": "minute", **PIECES}, 1.0),
}


def _bits(job: tuple[str, Scale, int]) -> float:
    name, scale, seed = job
    return ARMS[name].bits(scale, seed)


def result(scale: Scale) -> Outcome:
    """Train every arm with every seed, one on each core."""
    seeds: tuple[int, ...] = scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3, 4, 5))
    jobs = [(name, scale, seed) for seed, name in product(seeds, ARMS)]
    bits: dict[str, list[float]] = {name: [] for name in ARMS}
    with ProcessPoolExecutor(len(cores()), multiprocessing.get_context("spawn")) as pool:
        for (name, _, seed), end in zip(jobs, pool.map(_bits, jobs), strict=True):
            bits[name].append(end)
            say(f"  {name:40} seed {seed}  {end:.3f} bits per byte")
    samples = {name: Sample.of(values) for name, values in bits.items()}
    ratio = samples[NOW].median / samples[BEFORE].median
    best = min(samples, key=lambda name: samples[name].median)
    return Outcome(
        compared=[
            Compared(
                "today's default is the best of these arms",
                f"{NOW}: {samples[NOW].median:.3f} bits per byte; the best is {best}.",
                HOLDS if best == NOW else FAILS,
                timing=False,
            )
        ],
        table=[
            {
                "arm": name,
                "bits per byte": sample.spelt(".3f"),
                "cost of a token": ARMS[name].cost,
            }
            for name, sample in samples.items()
        ],
        claims=[]
        if scale.mode == "tiny"
        else [
            Claim("bits per byte of today's default over 0.2's", ratio, "<=", 0.87, timing=False)
        ],
        settings={
            "tokens": MINUTE,
            "arms": {name: dict(arm.options) for name, arm in ARMS.items()},
        },
        results={"bits_per_byte": bits},
        seeds=seeds,
    )


def draw(outcome: Outcome) -> Figure:
    """The losses of each arm, and a line at the median of today's default."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading=ABOUT.title)
    bits = outcome.results["bits_per_byte"]
    for place, (name, values) in enumerate(reversed(bits.items())):
        ink = INKS[0] if name == NOW else INKS[1]
        axes.plot(values, [place] * len(values), "o-", color=ink, markersize=4)
    axes.axvline(median(bits[NOW]), color="gray", linestyle=":")
    axes.set_yticks(range(len(bits)), list(reversed(bits)), fontsize=7)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
