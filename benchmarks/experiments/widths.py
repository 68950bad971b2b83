"""Does one step size fit models of every width? Serial trainings at three widths, and the default.

Every optimizer is trained at the step size that `--lr auto` takes for a width, at half of it and at
twice as much.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import fmean

from experiment.figures import INKS, Figure, label_lines, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run, say
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.machine import cores
from training.alone import ALONE, model_of, train_alone

from mlxhog import TrainConfig
from mlxhog.config import optimizers

ABOUT = Experiment(
    name="widths",
    title="One step size for every width",
    source="Yang et al. 2022 (mu-P), arXiv:2203.03466",
    about=(
        "xLSTMs of 4 heads on bytes, at three widths, each trained for equally many "
        "gradients, at the step size that --lr auto takes for its width, at half of "
        "it and at twice as much. A step size that moves with the width as mu-P asks should be "
        "near the best one at each. Counting gradients, a busy machine changes nothing."
    ),
    packages=("torch",),
)
FACTORS = (0.5, 1.0, 2.0)
NEAR = 0.02
"""Bits per byte above the best of a bracket that count as near it: about what seeds differ by."""


@dataclass(frozen=True)
class Size:
    """What is trained in a mode."""

    widths: tuple[int, ...]
    blocks: int
    seq_len: int
    gradients: int
    held_out: int
    seeds: tuple[int, ...]
    optimizers: tuple[str, ...] = ("muon",)


@dataclass(frozen=True)
class Training:
    """One training."""

    size: Size
    optimizer: str
    width: int
    factor: float
    seed: int

    @property
    def lr(self) -> float:
        """Its step size."""
        return self.factor * optimizers.by_name(self.optimizer).default_lr(self.width)

    def bits(self) -> float:
        """Held-out bits per byte at its end."""
        size = self.size
        config = TrainConfig(
            model=model_of(self.width, size.blocks),
            optimizer=self.optimizer,
            lr=self.lr,
            batch_size=2,
            seq_len=size.seq_len,
            steps=size.gradients,
            seed=self.seed,
            **ALONE,
        )
        return train_alone(config, size.held_out)


def size_of(scale: Scale) -> Size:
    """What is trained in a mode."""
    size: Size = scale.pick(
        tiny=Size((32, 64), 1, 32, 4, 1024, (1,)),
        quick=Size((64, 128), 2, 128, 200, 16_384, (1, 2, 3)),
        full=Size((64, 128, 256), 2, 128, 200, 16_384, (1, 2, 3), ("muon", "adamw")),
    )
    return size


def bits_of(trainings: Sequence[Training]) -> list[float]:
    """Train all of them, one on each core."""
    with ProcessPoolExecutor(len(cores()), multiprocessing.get_context("spawn")) as pool:
        ends = []
        for training, bits in zip(trainings, pool.map(Training.bits, trainings), strict=True):
            ends.append(bits)
            say(
                f"  {training.optimizer:6} d {training.width:4}  lr {training.lr:.3g}  "
                f"seed {training.seed}  {bits:.3f} bits per byte"
            )
        return ends


def result(scale: Scale) -> Outcome:
    """Train at every width, and compare each bracket's middle with its best."""
    size = size_of(scale)
    trainings = [
        Training(size, optimizer, width, factor, seed)
        for optimizer in size.optimizers
        for width in size.widths
        for factor in FACTORS
        for seed in size.seeds
    ]
    narrow = size.widths[0]
    again = [Training(size, "muon", narrow, 1.0, other_seed(seed)) for seed in size.seeds]
    of = dict(zip([*trainings, *again], bits_of([*trainings, *again]), strict=True))

    def bits_at(optimizer: str, width: int, factor: float) -> list[float]:
        return [of[Training(size, optimizer, width, factor, seed)] for seed in size.seeds]

    table = []
    for optimizer in size.optimizers:
        for width in size.widths:
            bits = {factor: fmean(bits_at(optimizer, width, factor)) for factor in FACTORS}
            table.append(
                {
                    "optimizer": optimizer,
                    "width": width,
                    "lr auto": float(f"{optimizers.by_name(optimizer).default_lr(width):.3g}"),
                    "at half of it": bits[0.5],
                    "at lr auto": bits[1.0],
                    "at twice as much": bits[2.0],
                    "above the best": round(bits[1.0] - min(bits.values()), 4),
                }
            )
    claims = [_above_the_better(width, bits_at) for width in size.widths]
    return Outcome(
        compared=[
            Compared.of(
                "the best step size of a narrow model is, scaled, that of a wide one", *claims
            )
        ],
        table=table,
        claims=[] if scale.mode == "tiny" else claims,
        settings={
            "blocks": size.blocks,
            "batch_size": 2,
            "seq_len": size.seq_len,
            "gradients": size.gradients,
            "held_out_tokens": size.held_out,
            "schedule": "that of mlxhog train",
        },
        results={"bits_per_byte": [[t.optimizer, t.width, t.lr, t.seed, of[t]] for t in trainings]},
        seeds=size.seeds,
        twins=[
            Twin.of(
                f"muon, d {narrow}, bits per byte",
                bits_at("muon", narrow, 1.0),
                [of[one] for one in again],
            )
        ],
    )


def _above_the_better(width: int, bits_at: Callable[[str, int, float], list[float]]) -> Claim:
    """That lr auto is near the better of half and twice as much."""
    other = min(FACTORS[0], FACTORS[-1], key=lambda factor: fmean(bits_at("muon", width, factor)))
    return Claim.of(
        f"muon, d {width}: bits per byte at lr auto above those at {other:g} times it",
        Mean.of_differences(bits_at("muon", width, 1.0), bits_at("muon", width, other)),
        "<=",
        NEAR,
        timing=False,
    )


def draw(outcome: Outcome) -> Figure:
    """Loss against the step size, a curve for each width."""
    optimizers = list(dict.fromkeys(row["optimizer"] for row in outcome.table))
    figure, panels = new_panels(
        *((f"lr of {name}", "held-out bits per byte", name) for name in optimizers)
    )
    for axes, optimizer in zip(panels, optimizers, strict=True):
        rows = [row for row in outcome.table if row["optimizer"] == optimizer]
        for ink, row in zip(INKS, rows, strict=False):
            lrs = [factor * row["lr auto"] for factor in FACTORS]
            bits = [row["at half of it"], row["at lr auto"], row["at twice as much"]]
            axes.plot(lrs, bits, "o-", color=ink, markersize=4, label=f"d {row['width']}")
        axes.set_xscale("log")
    label_lines(*panels)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
