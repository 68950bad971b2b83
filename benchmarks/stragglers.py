"""What waiting for the slowest of n workers costs: the documents' models, and measured steps.

    python benchmarks/stragglers.py          five seeds
    python benchmarks/stragglers.py --full   more rounds and steps

The slowest of n steps over the mean step, simulated: of purely exponential times, which is document
003's example, and of 1 + Exp(0.5), document 002's constant and a delay of rate .5 and so of mean 2.
By formula, with H_n the n-th harmonic number, the first is H_n and the second (1 + 2 H_n) / 3.
Beside them the steps of two lock-free workers that were measured here, drawn at random, and the
same model fitted to them: the least time, and an exponential delay with the mean that is left.
"""

import tempfile
from pathlib import Path

import numpy as np
from harness.claims import Claim
from harness.estimates import Mean
from harness.frame import MODES, flags, measured
from training.recording import QUIET_OPTIONS, SIZES, TINY, model_file, workers

from mlxhog import TrainConfig, train
from mlxhog.checkpoint.run import Run

LEAST, DELAY = 1.0, 2.0
"""Of 1 + Exp(0.5): the argument of Exp is the rate lambda, as in the lemma's a + H_n / lambda."""
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1000, 4000, 10_000)
DOCUMENTED, NEAR = 7.0, 0.1  # times the mean at 1000 workers ("~7x"), and how near counts
TAIL = 10  # observed steps for each of the workers whose slowest is drawn from them
QUANTILES = np.linspace(0.01, 0.99, 50)


def measure(findings, chosen):
    """Draw, measure, fit."""
    rounds = chosen.pick(tiny=50, quick=1000, full=4000)
    steps = chosen.pick(tiny=20, quick=400, full=1000)
    measured = {seed: step_times(chosen, steps, seed) for seed in chosen.seeds}
    every, rng = np.concatenate(list(measured.values())), np.random.default_rng(0)

    def exponential(n):
        return rng.exponential(1.0, n)

    def shifted(n):
        return LEAST + rng.exponential(DELAY, n)

    draws = {
        "exponential": (exponential, 1.0),
        "1 + Exp(0.5)": (shifted, LEAST + DELAY),
        "measured steps": (lambda n: rng.choice(every, n), float(every.mean())),
    }
    simulated = {
        name: {n: Mean.of(ratios(draw, n, rounds, mean)) for n in COUNTS}
        for name, (draw, mean) in draws.items()
    }
    least, delay = fit(every)
    findings.table(
        {"workers": n, "H_n": expected(0.0, 1.0, n),
         "(1 + 2 H_n) / 3": expected(LEAST, DELAY, n) / (LEAST + DELAY),
         "fitted": expected(least, delay, n) / (least + delay),
         **{name: of[n].value for name, of in simulated.items()}}
        for n in COUNTS
    )  # fmt: skip
    compare(findings, simulated, measured, rng, rounds)
    findings.same(
        "1 + Exp(0.5), slowest of 1,000 / mean",
        *(ratios(shifted, 1000, rounds, LEAST + DELAY) for _ in range(2)),
    )


def compare(findings, simulated, measured, rng, rounds):
    """The documents' claims beside this."""
    alone, both = simulated["exponential"], simulated["1 + Exp(0.5)"]
    off = {n: expected(LEAST, DELAY, n) / (LEAST + DELAY) for n in (16, 1000)}
    findings.describe(
        "With 1000 workers and exponential times a round takes about 7 times the mean step "
        "(document 003)",
        f"H_1000 = {expected(0.0, 1.0, 1000):.2f} times, {alone[1000]} in a simulation.",
    )
    findings.describe(
        "The same for 1 + Exp(0.5), a least time and a delay of mean 2 (document 002's model)",
        f"(1 + 2 H_1000) / 3 = {off[1000]:.2f} times, {both[1000]} in a simulation.",
    )

    def drawn(times):
        draw = ratios(lambda n: rng.choice(times, n), 1000, rounds, float(times.mean()))
        return Mean.of(draw).value

    name, limits = "steps of two workers, slowest of 1,000 / mean", (1 - NEAR, 1 + NEAR)
    low, high = (DOCUMENTED * limit for limit in limits)
    here = Claim.of(name, Mean.of(map(drawn, measured.values())), "within", high, least=low)
    fewest = min(map(len, measured.values()))
    findings.compare(
        "The same for steps of workers here",
        *([here] if fewest >= TAIL * 1000 else []),
        measured=f"{name}: {here.measured}, drawn from {fewest:,} steps of a seed",
    )
    formula = ", ".join(f"{both[n].value / ratio:.3f} for {n:,}" for n, ratio in off.items())
    findings.describe(
        "The expected slowest step is a + H_n / lambda (document 002)",
        f"The mean of the largest of n exponential times is H_n / lambda. Simulated / formula: "
        f"{formula}.",
    )
    worst = Mean.of(misfit(times, *fit(times)) for times in measured.values())
    findings.compare(
        "Steps of workers are a least time and an exponential delay",
        Claim.of("worst quantile off the fit, over the mean step", worst, "<=", 0.1),
    )


def ratios(draw, n, rounds, mean):
    """The slowest of n over the mean step, of independent rounds; more of them where n is small."""
    return [float(draw(n).max()) / mean for _ in range(max(rounds, 20_000 // n))]


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


def step_times(chosen, steps, seed):
    """Seconds of the gradients of two lock-free workers; their first ones are left out."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        options = {
            **QUIET_OPTIONS, "model": model_file(**(TINY if chosen.tiny else SIZES)),
            "batch_size": 2, "seq_len": 32 if chosen.tiny else 256, "strategy": "hogwild",
            "optimizer": "adamw", "threads": 1, "workers": workers(2), "out": folder,
            "steps": steps, "seed": seed,
        }  # fmt: skip
        result = train(TrainConfig(**options))
        times = [worker["compute_us"] for worker in Run(Path(result.run)).read_times()]
    warm = [us for own in times for us in own[len(own) // 10 :]]
    return np.array(warm, np.float64) / 1e6


def main():
    """Read the flags, and measure."""
    chosen = flags(__doc__, **MODES).parse_args()
    return measured("stragglers", chosen, measure, packages=("torch",), seeds=(5, 5))


if __name__ == "__main__":
    raise SystemExit(main())
