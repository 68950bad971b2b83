"""The reimplementation's Experiment 3: linear regression on five features."""

from __future__ import annotations

from dataclasses import replace

from experiment.classic import Arm, curve, interleaved, summary, with_a_core
from experiment.figures import Figure, curves, legend, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim
from harness.machine import cores

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import create

BUDGET = {"order": 50, "quick_s": 15, "full_s": 120}
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
            **summary(runs[arm.name], "train_loss", "distance"),
            "lost_updates": sum(one.lost_updates for one in runs[arm.name]),
        }
        for arm in arms
    ]
    by_count = {row["workers"]: row for row in table if row["write"] == "racy"}
    here = with_a_core(counts)
    speedup = by_count[1]["seconds"] / by_count[here]["seconds"]
    losses = [row["train_loss"] for row in table]
    spread = max(losses) / min(losses) - 1
    return Outcome(
        compared=[
            Compared(
                "Hogwild offers a good speedup on the regression task as well.",
                f"{here} workers on {len(cores())} cores are {speedup:.2f} times as fast as one: "
                "a step is a handful of multiplications and a write to the line that all share.",
                told(speedup > 1.5),
            ),
            Compared(
                "Serial SGD converges faster, but not significantly so.",
                f"Training losses after {epochs} epochs are within {100 * spread:.2f} % of each "
                "other, for all numbers of workers, racy and lossless.",
                told(spread < 0.05),
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
    counts = sorted({row["workers"] for row in outcome.table})
    seconds = {
        write: (counts, [row["seconds"] for row in outcome.table if row["write"] == write])
        for write in ("racy", "lossless")
    }
    curves(times, seconds, "o-")
    times.set_xticks(counts)
    times.set_ylim(bottom=0.0)
    traces = outcome.results["train_loss"].items()
    racy = {name: trace for name, trace in traces if name.startswith("racy")}
    curves(course, {name: (range(1, len(y) + 1), y) for name, y in racy.items()})
    course.set_yscale("log")
    legend(times)
    legend(course)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
