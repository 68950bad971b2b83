"""The reimplementation's Experiment 3: linear regression on five features."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from experiment.classic import Arm, curve, interleaved, last, seconds
from experiment.record import (
    FAILS,
    HOLDS,
    INKS,
    Claim,
    Compared,
    Experiment,
    Outcome,
    Scale,
    cores,
    legend,
    new_panels,
    run,
)

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import create

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = Experiment(
    name="linear_regression",
    title="Linear regression on one cache line",
    source="document 004, Experiment 3",
    about=(
        "5,000 rows of five dense features, 100 epochs, learning rate .001, Hogwild with 1 to 10 "
        "workers, as in the document. All five parameters lie on one cache line that every step "
        "of every worker writes: the worst case there is."
    ),
)
SETTINGS = {"size": 5_000, "lr": 0.001, "beta": 1.0}


def result(scale: Scale) -> Outcome:
    """Measure lossless and racy Hogwild for each number of workers."""
    epochs = scale.pick(tiny=2, quick=100, full=100)
    counts = scale.pick(tiny=(1, 2), quick=(1, 2, 4, 10), full=(1, 2, 4, 8, 10))
    problem = create("linear-regression", ClassicConfig(size=SETTINGS["size"]))
    base = ClassicConfig(lr=SETTINGS["lr"], beta=SETTINGS["beta"], epochs=epochs)
    arms = [
        Arm(f"{write} {count}", replace(base, workers=count, write=write))
        for write in ("racy", "lossless")
        for count in counts
    ]
    runs = interleaved(problem, arms, repeats=scale.pick(tiny=1, quick=2, full=9))
    table = [
        {
            "write": arm.config.write,
            "workers": arm.config.workers,
            "seconds": seconds(runs[arm.name]).median,
            "train_loss": last(runs[arm.name], "train_loss"),
            "distance": last(runs[arm.name], "distance"),
            "lost_updates": sum(one.lost_updates for one in runs[arm.name]),
        }
        for arm in arms
    ]
    by_count = {row["workers"]: row for row in table if row["write"] == "racy"}
    here = max(count for count in counts if count <= max(2, len(cores())))
    speedup = by_count[1]["seconds"] / by_count[here]["seconds"]
    losses = [row["train_loss"] for row in table]
    spread = max(losses) / min(losses) - 1
    return Outcome(
        compared=[
            Compared(
                "Hogwild offers a good speedup on the regression task as well.",
                f"{here} workers on {len(cores())} cores are {speedup:.2f} times as fast as one: "
                "a step is a handful of multiplications and a write to the line that all share.",
                HOLDS if speedup > 1.5 else FAILS,
            ),
            Compared(
                "Serial SGD converges faster, but not significantly so.",
                f"Training losses after {epochs} epochs are within {100 * spread:.2f} % of each "
                "other, for all numbers of workers, racy and lossless.",
                HOLDS if spread < 0.05 else FAILS,
                timing=False,
            ),
        ],
        table=table,
        claims=[
            Claim(
                f"largest |w - lstsq|, {row['write']}, {row['workers']} workers",
                row["distance"],
                "<=",
                0.02 if scale.mode != "tiny" else 9.0,
                timing=False,
            )
            for row in table
        ],  # fmt: skip
        settings={**SETTINGS, "epochs": epochs},
        results={
            "train_loss": {name: curve(repeats[0], "train_loss") for name, repeats in runs.items()}
        },
    )


def draw(outcome: Outcome) -> Figure:
    """Time by workers, and the loss by epoch."""
    figure, (times, course) = new_panels(
        ("workers", "seconds of all epochs", "Time"),
        ("epoch", "training loss", "Training loss, racy"),
    )
    for ink, write in zip(INKS, ("racy", "lossless"), strict=False):
        rows = [row for row in outcome.table if row["write"] == write]
        times.plot(
            [row["workers"] for row in rows], [row["seconds"] for row in rows], "o-", color=ink,
            label=write,
        )  # fmt: skip
    times.set_xticks([row["workers"] for row in rows])
    times.set_ylim(bottom=0.0)
    racy = [name for name in outcome.results["train_loss"] if name.startswith("racy")]
    for ink, name in zip(INKS, racy, strict=False):
        trace = outcome.results["train_loss"][name]
        course.plot(range(1, len(trace) + 1), trace, color=ink, label=name)
    course.set_yscale("log")
    legend(times)
    legend(course)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
