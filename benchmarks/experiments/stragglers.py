"""What waiting for the slowest of n workers costs: the document's model, and measured steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from experiment.figures import INKS, Figure, legend, new_panels
from experiment.language import setup, workers
from experiment.record import FAILS, Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim
from numpy.typing import NDArray
from training.recording import QUIET_OPTIONS

from mlxhog import TrainConfig, train
from mlxhog.checkpoint.run import Run

BUDGET = {"order": 170, "quick_s": 10, "full_s": 60}
ABOUT = Experiment(
    name="stragglers",
    title="Waiting for the slowest of n workers",
    source="document 003, the straggler problem and its figure",
    about=(
        "Steps of 1 + Exp(0.5) seconds, as the document draws them: the slowest of n over the mean "
        "step, by simulation and by 1 + H_n / 2. Beside it the steps of two lock-free workers that "
        "were measured here, drawn at random, and the same model fitted to them: the least time, "
        "and an exponential delay with the mean that is left."
    ),
    packages=("torch",),
)
LEAST, DELAY = 1.0, 0.5
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1000, 4000, 10_000)
DOCUMENTED = 7.0  # times the mean at 1000 workers
QUANTILES = np.linspace(0.01, 0.99, 50)

Seconds = NDArray[np.float64]


def result(scale: Scale) -> Outcome:
    """Draw, measure, fit."""
    rounds = scale.pick(tiny=50, quick=400, full=4000)
    steps = scale.pick(tiny=20, quick=600, full=3000)
    measured = step_times(scale, steps)
    least, delay = float(measured.min()), float(measured.mean() - measured.min())
    rng = np.random.default_rng(0)
    table = []
    for n in COUNTS:
        model = slowest(lambda shape: LEAST + rng.exponential(DELAY, shape), n, rounds)
        drawn = slowest(lambda shape: rng.choice(measured, shape), n, rounds)
        table.append(
            {
                "workers": n,
                "1 + Exp(0.5)": model / (LEAST + DELAY),
                "by formula": expected(LEAST, DELAY, n) / (LEAST + DELAY),
                "measured steps": drawn / float(measured.mean()),
                "fitted": expected(least, delay, n) / float(measured.mean()),
            }
        )
    off = max(abs(row["1 + Exp(0.5)"] / row["by formula"] - 1) for row in table)
    thousand = next(row for row in table if row["workers"] == 1000)
    two = next(row for row in table if row["workers"] == 2)
    return Outcome(
        compared=[
            Compared(
                "With 1000 workers a round takes about 7 times the mean step",
                f"{thousand['1 + Exp(0.5)']:.2f} times for the document's own 1 + Exp(0.5); 7.49 "
                "is right for times without a least one. Steps measured here: "
                f"{thousand['measured steps']:.2f} times.",
                FAILS,
                timing=False,
            ),
            Compared(
                "The expected slowest step is a + H_n / lambda",
                f"The simulated one is within {off:.1%} of it for n to 10,000.",
                told(off < 0.03),
                timing=False,
            ),
            Compared(
                "Steps of workers are a least time and an exponential delay",
                f"Measured on two workers: mean {measured.mean() * 1e3:.1f} ms, least "
                f"{least * 1e3:.1f} ms, worst quantile off by {misfit(measured, least, delay):.0%} "
                f"of the mean; the slowest of 1000 drawn takes {thousand['measured steps']:.2f} "
                f"times the mean, by the fit {thousand['fitted']:.2f}; of two "
                f"{two['measured steps']:.2f} and {two['fitted']:.2f}.",
                told(misfit(measured, least, delay) < 0.1),
            ),
        ],
        table=table,
        claims=[Claim("simulated slowest step / formula, off by", off, "<=", 0.1, timing=False)],
        settings={"rounds": rounds, "steps": steps, **setup(scale).to_json()},
        results={
            "measured_quantiles_s": np.quantile(measured, QUANTILES).tolist(),
            "fitted_quantiles_s": (least - delay * np.log1p(-QUANTILES)).tolist(),
        },
    )


def slowest(draw_times: Any, n: int, rounds: int) -> float:
    """Mean of the slowest of n, over so many rounds, and more where they are small."""
    return fmean(float(draw_times((n,)).max()) for _ in range(max(rounds, 20_000 // n)))


def expected(least: float, delay: float, n: int) -> float:
    """The expected slowest of n times that are a least one and an exponential delay."""
    return least + delay * float((1.0 / np.arange(1, n + 1)).sum())


def misfit(measured: Seconds, least: float, delay: float) -> float:
    """The largest distance of a quantile from the fit's, over the mean step."""
    fitted = least - delay * np.log1p(-QUANTILES)
    return float(np.abs(np.quantile(measured, QUANTILES) - fitted).max() / measured.mean())


def step_times(scale: Scale, steps: int) -> Seconds:
    """Seconds of the gradients of two lock-free workers; their first ones are left out."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        options = {
            **QUIET_OPTIONS, **setup(scale).options(), "workers": workers(2), "out": folder,
            "steps": steps,
        }  # fmt: skip
        result = train(TrainConfig(**options))
        times = [worker["compute_us"] for worker in Run(Path(result.run)).read_times()]
    warm = [us for own in times for us in own[len(own) // 10 :]]
    return np.array(warm, np.float64) / 1e6


def draw(outcome: Outcome) -> Figure:
    """The slowest over the mean, and measured quantiles beside the fitted ones."""
    figure, (growth, quantiles) = new_panels(
        ("workers", "slowest step / mean step", "One round"),
        ("fitted quantile, ms", "measured quantile, ms", "Steps of two workers"),
    )
    at = [row["workers"] for row in outcome.table]
    names = ("1 + Exp(0.5)", "by formula", "measured steps", "fitted")
    for ink, name in zip(INKS, names, strict=False):
        style = "--" if name in ("by formula", "fitted") else "o-"
        growth.plot(at, [row[name] for row in outcome.table], style, color=ink, label=name)
    growth.axhline(DOCUMENTED, color=INKS[-1], linewidth=0.8, linestyle=":")
    growth.set_xscale("log")
    legend(growth)
    fitted, measured = (
        [s * 1e3 for s in outcome.results[f"{which}_quantiles_s"]]
        for which in ("fitted", "measured")
    )
    quantiles.plot(fitted, measured, "o", color=INKS[0])
    quantiles.plot(fitted, fitted, color=INKS[1])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
