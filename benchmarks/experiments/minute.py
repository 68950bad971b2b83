"""What a minute of training is worth: tokens of bytes or of pieces of words, depth, step sizes.

    python benchmarks/experiments/minute.py          a thirty-second of the text, three seeds
    python benchmarks/experiments/minute.py --full   a quarter of it, three seeds: six minutes

Every arm gets the compute of the same number of byte tokens in `tiny`: its own tokens are these,
divided by what one of them costs. Nothing is timed, so a busy machine changes no loss.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from experiment.figures import Figure, intervals, new_panel
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run, say
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio
from harness.machine import cores
from training.alone import ALONE, train_alone

from mlxhog import TrainConfig

ABOUT = Experiment(
    name="minute",
    title="Today's default beside that of 0.2, with a quarter of a minute's text",
    source="the defaults of mlxhog train",
    about=(
        "The default of version 0.2 (bytes, four blocks of width 128), and the tokenizer of the "
        "text, depth and step sizes of today's default, one after another. All arms have the same "
        "budget in compute: tokens, divided by the relative cost of one."
    ),
    packages=("torch",),
    full_seeds=3,
)
MINUTE = 971_000  # byte tokens that two cores train in a minute of `tiny`
HELD_OUT = 863_914  # bytes
EQUAL = {"embedding_lr": 1, "head_lr": 1, "scalar_lr": 1}
PIECES: Mapping[str, Any] = {"tokenizer": "sotu"}


def tokens_of(scale: Scale) -> float:
    """The budget, in tokens of the first arm."""
    return scale.pick(tiny=4096, quick=MINUTE / 32, full=MINUTE / 4)


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
        minute = tokens_of(scale)
        held_out = scale.pick(tiny=4096, quick=HELD_OUT / 32, full=HELD_OUT / 8)
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
    """Train every arm with every seed, one on each core, and today's default with others (A/A)."""
    again = [(NOW, scale, other_seed(seed)) for seed in scale.seeds]
    jobs = [(name, scale, seed) for seed, name in product(scale.seeds, ARMS)]
    bits: dict[str, list[float]] = {name: [] for name in ARMS}
    with ProcessPoolExecutor(len(cores()), multiprocessing.get_context("spawn")) as pool:
        ends = []
        for (name, _, seed), end in zip(
            [*jobs, *again], pool.map(_bits, [*jobs, *again]), strict=True
        ):
            ends.append(end)
            say(f"  {name:40} seed {seed}  {end:.3f} bits per byte")
    for (name, _, _), end in zip(jobs, ends, strict=False):
        bits[name].append(end)
    ratios = {name: Ratio.of(bits[NOW], own) for name, own in bits.items() if name != NOW}
    return Outcome(
        compared=[
            Compared.of(
                "today's default is the best of these arms",
                *(
                    Claim.of(f"bits per byte, today's default / {name}", ratio, "<=", 1.0,
                             timing=False)
                    for name, ratio in ratios.items()
                ),
            )
        ],
        table=[
            {
                "arm": name,
                "bits per byte": Mean.of(own).spelt(".3f"),
                "today's default / this": ratios[name].spelt(".3f") if name in ratios else "1",
                "cost of a token": ARMS[name].cost,
            }
            for name, own in bits.items()
        ],
        claims=[
            Claim.of("bits per byte of today's default over 0.2's", ratios[BEFORE], "<=", 1.0,
                     timing=False)
        ],
        settings={
            "tokens": round(tokens_of(scale)),
            "arms": {name: dict(arm.options) for name, arm in ARMS.items()},
        },
        results={"bits_per_byte": bits},
        twins=[Twin.of(NOW, bits[NOW], ends[len(jobs) :])],
    )  # fmt: skip


def draw(outcome: Outcome) -> Figure:
    """The losses of each arm, every seed, with their intervals."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading=ABOUT.title)
    intervals(axes, outcome.results["bits_per_byte"])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
