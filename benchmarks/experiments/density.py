"""How sparse a problem has to be for lock-free workers: least squares at several densities."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiment.classic import Arm, interleaved, last, seconds
from experiment.figures import INKS, Figure, curves, legend, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim

from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.generators import sparse_regression
from mlxhog.classic.problem import Defaults
from mlxhog.classic.problems.linear import SPARSE_WRITES, SparseLinear

BUDGET = {"order": 150, "quick_s": 60, "full_s": 1800}
ABOUT = Experiment(
    name="density",
    title="From which density on lock-free steps are worse than locked ones",
    source="document 003, exercise 7",
    about=(
        "Least squares on rows with the same share of their features set, at the document's "
        "densities; sixteen lock-free workers, as many that lock what they touch, and one. Beside "
        "them gradients that are exactly fifteen updates old, one after another, so that what "
        "staleness does is seen apart from what gets lost."
    ),
)
DENSITIES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
WORKERS = 16
NOISE = 0.1
LR = 0.5
NEAR = 1.1  # times the serial loss: the document's "converged"


def problem(density: float, rows: int, features: int) -> SparseLinear:
    """The regression at a density."""
    train, test = sparse_regression(rows, features, density, noise=NOISE, seed=0)
    return SparseLinear(
        name=f"density {density:g}",
        about=f"{rows} rows, {features} features, {density:g} of them set",
        train=train,
        test=test,
        loss="squares",
        lam=0.0,
        defaults=Defaults(lr=LR, beta=0.8, epochs=10, writes=SPARSE_WRITES),
    )


def delayed(rows: SparseRows, *, late: int, epochs: int, beta: float, seed: int) -> np.ndarray:
    """Weights after steps whose gradients are all exactly `late` updates old."""
    w = np.zeros(rows.n_features)
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    values, lr = rows.values.astype(np.float64), LR
    for epoch in range(epochs):
        for row in np.random.default_rng([seed, epoch]).permutation(rows.n_rows):
            span = slice(rows.indptr[row], rows.indptr[row + 1])
            at = rows.indices[span]
            slope = values[span] @ w[at] - rows.labels[row]
            pending.append((at, lr * slope * values[span]))
            if len(pending) > late:
                index, step = pending.pop(0)
                w[index] -= step
        lr *= beta
    for index, step in pending:
        w[index] -= step
    return w


def result(scale: Scale) -> Outcome:
    """Train at every density."""
    n, d = scale.pick(tiny=(200, 400), quick=(4_000, 4_000), full=(20_000, 10_000))
    epochs = scale.pick(tiny=2, quick=8, full=10)
    densities = scale.pick(tiny=(0.01, 0.5), quick=DENSITIES, full=DENSITIES)
    many = scale.pick(tiny=2, quick=WORKERS, full=WORKERS)
    arms = [
        Arm.of("serial", scheme="serial", epochs=epochs),
        Arm.of("racy", write="racy", workers=many, epochs=epochs),
        Arm.of("lossless", write="lossless", workers=many, epochs=epochs),
        Arm.of("locked (aig)", scheme="aig", workers=many, epochs=epochs),
    ]
    table = []
    for density in densities:
        one = problem(density, n, d)
        runs = interleaved(one, arms, repeats=scale.pick(tiny=1, quick=1, full=5))
        late = delayed(one.train, late=many - 1, epochs=epochs, beta=0.8, seed=0)
        assert one.test is not None
        losses = {name: last(own, "test_loss") for name, own in runs.items()}
        losses["delayed"] = float(np.square(one.test.scores(late) - one.test.labels).mean() / 2)
        table.append(
            {
                "density": density,
                **{name: loss for name, loss in losses.items()},
                "racy / locked": losses["racy"] / losses["locked (aig)"],
                "locked s / racy s": seconds(runs["locked (aig)"]).median
                / seconds(runs["racy"]).median,
            }
        )
    return Outcome(
        compared=_compared(table, many),
        table=table,
        claims=[
            Claim(
                f"racy loss / locked loss, density {row['density']:g}",
                row["racy / locked"],
                "<=",
                NEAR if scale.mode != "tiny" else 99.0,
                timing=False,
            )
            for row in table
        ],
        settings={"rows": n, "features": d, "epochs": epochs, "workers": many, "lr": LR},
        results={"losses": table},
    )


def _compared(table: list[dict[str, Any]], many: int) -> list[Compared]:
    threshold = 1 / many
    beyond = [row for row in table if row["density"] > threshold]
    worse = [row["density"] for row in beyond if row["racy / locked"] > NEAR]
    ratios = ", ".join(f"{row['density']:g}: {row['racy / locked']:.2f}" for row in table)
    diverged = [row["density"] for row in table if not row["racy"] < 2 * row["serial"]]

    return [
        Compared(
            f"Hogwild matches locked SGD up to a density of about 1/P = {threshold:.3f} only",
            f"Test loss of racy Hogwild over that of locked SGD, by density: {ratios}. That rows "
            "share features does not mean that they disturb each other: random rows are nearly "
            "orthogonal at any density.",
            told(bool(worse)),
            timing=False,
        ),
        Compared(
            "At densities of .25 and .5 Hogwild diverges",
            f"Densities at which the loss was above twice the serial one: {diverged or 'none'}.",
            told({0.25, 0.5} <= set(diverged)),
            timing=False,
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Losses by density, and what locks cost."""
    figure, (losses, speed) = new_panels(
        ("share of features in a row", "test loss", "Loss"),
        ("share of features in a row", "locked seconds / racy seconds", "Price of locks"),
    )
    at = [row["density"] for row in outcome.table]
    names = ("serial", "racy", "locked (aig)", "delayed")
    curves(losses, {name: (at, [row[name] for row in outcome.table]) for name in names}, "o-")
    speed.plot(at, [row["locked s / racy s"] for row in outcome.table], "o-", color=INKS[0])
    for axes in (losses, speed):
        axes.set_xscale("log")
    losses.set_yscale("log")
    legend(losses)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
