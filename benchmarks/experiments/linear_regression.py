"""The reimplementation's Experiment 3: linear regression on five features."""

from dataclasses import replace

from experiment.classic import (
    Arm,
    curve,
    ends,
    interleaved,
    speedup,
    summary,
    time_bars,
    with_a_core,
)
from experiment.dense import linear_regression
from experiment.figures import curves, inks, label_lines, new_panels
from experiment.record import Compared, Experiment, Outcome, run
from harness.claims import Claim
from harness.estimates import Mean, Ratio

from mlxhog.classic.config import ClassicConfig

ABOUT = Experiment(
    name="linear_regression",
    title="Linear regression on one cache line",
    source="document 004, Experiment 3",
    about=(
        "5,000 rows of five dense features, 100 epochs, learning rate .001, Hogwild with 1 to 10 "
        "workers, as in the document. All five parameters lie on one cache line that every step "
        "of every worker writes: the worst case there is."
    ),
    quick_seeds=5,
    full_seeds=9,
)
GOOD = 1.5
SETTINGS = {"size": 5_000, "lr": 0.001, "beta": 1.0}


def result(scale):
    """Measure lossless and racy Hogwild for each number of workers."""
    epochs = scale.pick(tiny=2, quick=100, full=100)
    counts = scale.pick(tiny=(1, 2), quick=(1, 2, 10), full=(1, 2, 4, 8, 10))
    problem = linear_regression(SETTINGS["size"])
    base = ClassicConfig(lr=SETTINGS["lr"], beta=SETTINGS["beta"], epochs=epochs)
    arms = [
        Arm(f"{write} {count}", replace(base, workers=count, write=write))
        for write in ("racy", "lossless")
        for count in counts
    ]
    runs, twins = interleaved(problem, arms, scale.seeds)
    here = with_a_core(counts)
    alone = ends(runs["racy 1"], "train_loss")
    return Outcome(
        compared=[
            Compared.of(
                "Hogwild offers a good speedup on the regression task as well.",
                Claim.of(
                    f"seconds of 1 / of {here} workers, racy",
                    speedup(runs["racy 1"], runs[f"racy {here}"]), ">=", GOOD,
                ),
            ),
            Compared.of(
                "Serial SGD converges faster, but not significantly so.",
                *(
                    Claim.of(
                        f"training loss of {count} workers / of 1, {write}",
                        Ratio.of(ends(runs[f"{write} {count}"], "train_loss"), alone),
                        "<=", 1.05, timing=False,
                    )
                    for write in ("racy", "lossless")
                    for count in counts[1:]
                ),
            ),
        ],
        table=[
            {
                "write": arm.config.write,
                "workers": arm.config.workers,
                **summary(runs[arm.name], "train_loss", "distance"),
                "speedup": speedup(runs[f"{arm.config.write} 1"], runs[arm.name]).spelt(),
                "lost_updates": sum(one.lost_updates for one in runs[arm.name]),
            }
            for arm in arms
        ],
        claims=[
            Claim.of(
                f"largest |w - lstsq|, {arm.name.replace(' ', ', ')} workers",
                Mean.of(ends(runs[arm.name], "distance")), "<=", 0.02, timing=False,
            )
            for arm in arms
        ],
        settings={**SETTINGS, "epochs": epochs},
        results={
            "train_loss": {name: curve(repeats[0], "train_loss") for name, repeats in runs.items()}
        },
        twins=twins,
    )  # fmt: skip


def draw(outcome):
    """Time by workers, and the loss by epoch."""
    figure, (times, course) = new_panels(
        ("workers", "seconds of all epochs", "Time"),
        ("epoch", "training loss", "Training loss, racy"),
    )
    counts = sorted({row["workers"] for row in outcome.table})
    for write, ink in inks(("racy", "lossless")).items():
        time_bars(times, [row for row in outcome.table if row["write"] == write], ink, write)
    times.set_xticks(counts)
    times.set_ylim(bottom=0.0)
    traces = outcome.results["train_loss"].items()
    racy = {name: trace for name, trace in traces if name.startswith("racy")}
    course.set_yscale("log")
    curves(course, {name: (range(1, len(y) + 1), y) for name, y in racy.items()})
    label_lines(times)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
