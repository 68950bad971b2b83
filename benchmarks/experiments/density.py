"""How sparse a problem has to be for lock-free workers: least squares at several densities."""

import numpy as np
from experiment.classic import Arm, ends, interleaved, speedup
from experiment.figures import INKS, inks, label_lines, new_panels
from experiment.generated import sparse_regression
from experiment.record import Compared, Experiment, Outcome, run
from harness.claims import Claim, Sample
from harness.estimates import Ratio

from mlxhog.classic.problem import Defaults
from mlxhog.classic.problems.linear import SPARSE_WRITES, SparseLinear

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
QUICK_DENSITIES = (0.01, 0.1, 0.25, 0.5)
WORKERS = 16
NOISE = 0.1
LR = 0.5
DIVERGED = 1e6
NEAR = 1.1  # times the serial loss: the document's "converged"


def problem(density, rows, features):
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


def delayed(rows, *, late, epochs, beta, seed):
    """Weights after steps whose gradients are all exactly `late` updates old."""
    w = np.zeros(rows.n_features)
    pending = []
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


def result(scale):
    """Train at every density."""
    n, d = scale.pick(tiny=(200, 400), quick=(2_000, 2_000), full=(3_000, 3_000))
    epochs = scale.pick(tiny=2, quick=8, full=10)
    densities = scale.pick(tiny=(0.01, 0.5), quick=QUICK_DENSITIES, full=DENSITIES)
    many = scale.pick(tiny=2, quick=WORKERS, full=WORKERS)
    arms = [
        Arm.of("serial", scheme="serial", epochs=epochs),
        Arm.of("racy", write="racy", workers=many, epochs=epochs),
        Arm.of("aig", scheme="aig", workers=many, epochs=epochs),
    ]
    losses = {}
    prices = {}
    twins = []
    for density in densities:
        one = problem(density, n, d)
        runs, own_twins = interleaved(one, arms, scale.seeds)
        twins += own_twins
        losses[density] = {
            name: list(map(finite, ends(own, "test_loss"))) for name, own in runs.items()
        }
        losses[density]["delayed"] = [
            late_loss(one, late=many - 1, epochs=epochs, seed=seed) for seed in scale.seeds
        ]
        prices[density] = speedup(runs["aig"], runs["racy"])
    return Outcome(
        compared=compared(losses, many),
        table=[
            {
                "density": density,
                **{name: Sample.of(own).median for name, own in by.items()},
                "racy / locked": Ratio.of(by["racy"], by["aig"]).spelt(".3f"),
                "locked s / racy s": prices[density].spelt(),
            }
            for density, by in losses.items()
        ],
        settings={"rows": n, "features": d, "epochs": epochs, "workers": many, "lr": LR},
        results={
            "losses": {f"{density:g}": by for density, by in losses.items()},
            "price of locks": {f"{density:g}": one.to_json() for density, one in prices.items()},
        },
        twins=twins,
    )


def finite(loss):
    """A loss; of a run that diverged, one that is beyond every other."""
    return loss if loss < DIVERGED else DIVERGED


def late_loss(one, *, late, epochs, seed):
    """Test loss after gradients that are all late."""
    assert one.test is not None
    with np.errstate(over="ignore", invalid="ignore"):
        weights = delayed(one.train, late=late, epochs=epochs, beta=0.8, seed=seed)
        return finite(float(np.square(one.test.scores(weights) - one.test.labels).mean() / 2))


def compared(losses, many):
    """The exercise's claims beside this: each is two-sided, and either side can be wrong."""
    threshold = 1 / many

    def over(name, base, density, relation, limit):
        ratio = Ratio.of(losses[density][name], losses[density][base])
        text = f"density {density:g}, loss of {name} / {base}"
        return Claim.of(text, ratio, relation, limit, timing=False)

    below = [density for density in losses if density < threshold]
    beyond = [density for density in losses if density > threshold]
    return [
        Compared.of(
            f"Hogwild matches locked SGD up to a density of about 1/P = {threshold:.3f}",
            *(over("racy", "aig", density, "<=", NEAR) for density in below),
        ),
        Compared.of(
            f"Beyond a density of 1/P = {threshold:.3f} Hogwild is worse than locked SGD",
            *(over("racy", "aig", density, ">=", NEAR) for density in beyond),
        ),
        Compared.of(
            "At densities of .25 and .5 Hogwild diverges",
            *(
                over("racy", "serial", density, ">=", 2.0)
                for density in losses
                if density in (0.25, 0.5)
            ),
        ),
        Compared.of(
            "What staleness does at those densities, without lost updates (not in the document): "
            "gradients that are all P - 1 late diverge",
            *(
                over("delayed", "serial", density, ">=", 2.0)
                for density in losses
                if density in (0.25, 0.5)
            ),
        ),
    ]


def draw(outcome):
    """Losses by density, and what locks cost."""
    figure, (losses, speed) = new_panels(
        ("share of features in a row", "test loss", "Loss"),
        ("share of features in a row", "locked seconds / racy seconds", "Price of locks"),
    )
    at = [row["density"] for row in outcome.table]
    for name, ink in inks(("serial", "racy", "aig", "delayed")).items():
        own = np.array([by[name] for by in outcome.results["losses"].values()])
        losses.plot(at, np.median(own, axis=1), "-", color=ink, label=name)
        losses.plot(at, own, ".", color=ink)
    prices = list(outcome.results["price of locks"].values())
    middles = [one["value"] for one in prices]
    ranges = [[one["value"] - one["low"] for one in prices],
              [one["high"] - one["value"] for one in prices]]  # fmt: skip
    speed.errorbar(at, middles, yerr=ranges, fmt="o-", capsize=2, color=INKS[0])
    for axes in (losses, speed):
        axes.set_xscale("log")
    losses.set_yscale("log")
    label_lines(losses)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
