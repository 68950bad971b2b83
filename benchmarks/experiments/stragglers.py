"""What waiting for the slowest of n workers costs: the document's model, and measured steps."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from experiment.figures import INKS, label_lines, new_panels
from experiment.language import setup, workers
from experiment.record import UNTOLD, Compared, Experiment, Outcome, run
from harness.claims import Claim, Twin
from harness.estimates import Mean
from numpy.typing import NDArray
from training.recording import QUIET_OPTIONS

from mlxhog import TrainConfig, train
from mlxhog.checkpoint.run import Run

ABOUT = Experiment(
    name="stragglers",
    title="Waiting for the slowest of n workers",
    source="document 003, the straggler problem; document 002, its lemma",
    about=(
        "The slowest of n steps over the mean step, simulated: of purely exponential times, which "
        "is document 003's example, and of 1 + Exp(0.5), document 002's constant and a delay of "
        "rate .5 and so of mean 2. By formula, with H_n the n-th harmonic number, the first is H_n "
        "and the second (1 + 2 H_n) / 3. Beside them the steps of two lock-free workers that were "
        "measured here, drawn at random, and the same model fitted to them: the least time, and an "
        "exponential delay with the mean that is left."
    ),
    packages=("torch",),
    quick_seeds=5,
)
LEAST, RATE = 1.0, 0.5
DELAY = 1.0 / RATE
"""Mean of Exp(RATE): its argument is the rate lambda, as in the lemma's a + H_n / lambda."""
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1000, 4000, 10_000)
DOCUMENTED, NEAR = 7.0, 0.1  # times the mean at 1000 workers ("~7x"), and how near counts
TAIL = 10  # observed steps for each of the workers whose slowest is drawn from them
QUANTILES = np.linspace(0.01, 0.99, 50)

Seconds = NDArray[np.float64]
Draw = Callable[[int], Seconds]


def result(scale):
    """Draw, measure, fit."""
    rounds = scale.pick(tiny=50, quick=1000, full=4000)
    steps = scale.pick(tiny=20, quick=400, full=1000)
    measured = {seed: step_times(scale, steps, seed) for seed in scale.seeds}
    every = np.concatenate(list(measured.values()))
    rng = np.random.default_rng(0)
    draws = {
        "exponential": (lambda n: rng.exponential(1.0, n), 1.0),
        "1 + Exp(0.5)": (lambda n: LEAST + rng.exponential(DELAY, n), LEAST + DELAY),
        "measured steps": (lambda n: rng.choice(every, n), float(every.mean())),
    }
    simulated = {
        name: {n: slowest(draw, n, rounds, mean) for n in COUNTS}
        for name, (draw, mean) in draws.items()
    }
    least, delay = fit(every)
    shifted, mean = draws["1 + Exp(0.5)"]
    own, again = (ratios(shifted, 1000, rounds, mean) for _ in range(2))
    return Outcome(
        compared=compared(simulated, measured, rng, rounds),
        table=[
            {
                "workers": n,
                "exponential": simulated["exponential"][n].value,
                "H_n": expected(0.0, 1.0, n),
                "1 + Exp(0.5)": simulated["1 + Exp(0.5)"][n].value,
                "(1 + 2 H_n) / 3": expected(LEAST, DELAY, n) / (LEAST + DELAY),
                "measured steps": simulated["measured steps"][n].value,
                "fitted": expected(least, delay, n) / (least + delay),
            }
            for n in COUNTS
        ],
        settings={"rounds": rounds, "steps": steps, **setup(scale).to_json()},
        results={
            "measured_quantiles_s": np.quantile(every, QUANTILES).tolist(),
            "fitted_quantiles_s": (least - delay * np.log1p(-QUANTILES)).tolist(),
        },
        twins=[Twin.of("1 + Exp(0.5), slowest of 1,000 / mean", own, again)],
    )


def compared(simulated, measured, rng, rounds):
    """The documents' claims beside this."""

    def drawn(times):
        return slowest(lambda n: rng.choice(times, n), 1000, rounds, float(times.mean())).value

    here = Claim.of(
        "steps of two workers, slowest of 1,000 / mean",
        Mean.of(map(drawn, measured.values())),
        "within",
        (1 + NEAR) * DOCUMENTED,
        least=(1 - NEAR) * DOCUMENTED,
    )
    fewest = min(map(len, measured.values()))
    shifted = simulated["1 + Exp(0.5)"]
    off = {n: expected(LEAST, DELAY, n) / (LEAST + DELAY) for n in (16, 1000)}
    return [
        Compared.described(
            "With 1000 workers and exponential times a round takes about 7 times the mean step "
            "(document 003)",
            f"H_1000 = {expected(0.0, 1.0, 1000):.2f} times, {simulated['exponential'][1000]} "
            "in a simulation.",
        ),
        Compared.described(
            "The same for 1 + Exp(0.5), a least time and a delay of mean 2 (document 002's model)",
            f"(1 + 2 H_1000) / 3 = {off[1000]:.2f} times, {shifted[1000]} in a simulation.",
        ),
        Compared.of("The same for steps of workers here", here)
        if fewest >= TAIL * 1000
        else Compared(
            "The same for steps of workers here",
            f"{here.name}: {here.measured}, drawn from {fewest:,} steps of a seed, whose largest "
            "bounds it: too few for the slowest of 1,000",
            UNTOLD,
        ),
        Compared.described(
            "The expected slowest step is a + H_n / lambda (document 002)",
            "The mean of the largest of n exponential times is H_n / lambda. Simulated / formula: "
            + ", ".join(
                f"{shifted[n].mean / ratio:.3f} for {n:,}" for n, ratio in off.items()
            )
            + ".",
        ),
        Compared.of(
            "Steps of workers are a least time and an exponential delay",
            Claim.of(
                "worst quantile off the fit, over the mean step",
                Mean.of(misfit(times, *fit(times)) for times in measured.values()), "<=", 0.1,
            ),
        ),
    ]  # fmt: skip


def ratios(draw, n, rounds, mean):
    """The slowest of n over the mean step, of independent rounds; more of them where n is small."""
    return [float(draw(n).max()) / mean for _ in range(max(rounds, 20_000 // n))]


def slowest(draw, n, rounds, mean):
    """The expected slowest of n over the mean step."""
    return Mean.of(ratios(draw, n, rounds, mean))


def expected(least, delay, n):
    """The expected slowest of n times that are a least one and an exponential delay."""
    return least + delay * float((1.0 / np.arange(1, n + 1)).sum())


def fit(times):
    """The least time, and the mean of the delay that is left."""
    return float(times.min()), float(times.mean() - times.min())


def misfit(measured, least, delay):
    """The largest distance of a quantile from the fit's, over the mean step."""
    fitted = least - delay * np.log1p(-QUANTILES)
    return float(np.abs(np.quantile(measured, QUANTILES) - fitted).max() / measured.mean())


def step_times(scale, steps, seed):
    """Seconds of the gradients of two lock-free workers; their first ones are left out."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        options = {
            **QUIET_OPTIONS, **setup(scale).options(), "workers": workers(2), "out": folder,
            "steps": steps, "seed": seed,
        }  # fmt: skip
        result = train(TrainConfig(**options))
        times = [worker["compute_us"] for worker in Run(Path(result.run)).read_times()]
    warm = [us for own in times for us in own[len(own) // 10 :]]
    return np.array(warm, np.float64) / 1e6


def draw(outcome):
    """The slowest over the mean, and measured quantiles beside the fitted ones."""
    figure, (growth, quantiles) = new_panels(
        ("workers", "slowest step / mean step", "One round"),
        ("fitted quantile, ms", "measured quantile, ms", "Steps of two workers"),
    )
    at = [row["workers"] for row in outcome.table]
    names = (
        "exponential", "H_n", "1 + Exp(0.5)", "(1 + 2 H_n) / 3", "measured steps", "fitted",
    )  # fmt: skip
    for ink, name in zip(INKS, names, strict=False):
        style = "--" if name in ("H_n", "(1 + 2 H_n) / 3", "fitted") else "o-"
        growth.plot(at, [row[name] for row in outcome.table], style, color=ink, label=name)
    growth.axhline(DOCUMENTED, color=INKS[-1], linewidth=0.8, linestyle=":")
    growth.set_xscale("log")
    label_lines(growth)
    fitted, measured = (
        [s * 1e3 for s in outcome.results[f"{which}_quantiles_s"]]
        for which in ("fitted", "measured")
    )
    quantiles.plot(fitted, measured, "o", color=INKS[0])
    quantiles.plot(fitted, fitted, color=INKS[1])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
