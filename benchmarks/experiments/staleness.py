"""Steps to a loss against staleness: exact staleness by workers that apply in turn."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

from experiment.language import Bench, Training, descend, setup, workers
from experiment.record import (
    FAILS,
    HOLDS,
    INKS,
    PARTLY,
    UNTOLD,
    Compared,
    Experiment,
    Outcome,
    Sample,
    Scale,
    is_recorded,
    legend,
    new_panels,
    recorded,
    run,
    write_recorded,
)
from training.recording import count_parameters, model_file

from mlxhog.theory.bounds import Facts, penalty, step_koloskova

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = Experiment(
    name="staleness",
    title="Steps to a loss against staleness",
    source="document 001, Test 4",
    about=(
        "P workers that apply in turn (round_robin) make every gradient exactly P - 1 updates old, "
        "on any machine, however many cores it has. Each staleness has its own step size, found by "
        "a search. Two lock-free workers stand beside them at the staleness that was observed."
    ),
    packages=("torch",),
)
FIRST_RATES = {0: 2e-3, 1: 1e-3, 3: 5e-4, 7: 2.5e-4, 15: 2.5e-4}


def lags(scale: Scale) -> tuple[int, ...]:
    """The values of staleness that are tried."""
    values: tuple[int, ...] = scale.pick(tiny=(0, 1), quick=(0, 1, 3, 7), full=(0, 1, 3, 7, 15))
    return values


def settings(scale: Scale) -> dict[str, Any]:
    """Recorded step sizes and budgets; arbitrary ones where numbers mean nothing."""
    if scale.mode == "tiny":
        return {"target": 7.0, "tokens": {"0": 12_000, "1": 12_000}, "lr": {"0": 1e-3, "1": 1e-3}}
    values: dict[str, Any] = recorded(ABOUT.name)[scale.mode]
    return values


def result(scale: Scale) -> Outcome:
    """Train at every staleness and compare with what theory says."""
    chosen, bench = settings(scale), Bench(setup(scale))
    target = chosen["target"]
    trainings: dict[str, list[Training]] = {}
    for seed in scale.seeds:
        for lag in lags(scale):
            trainings.setdefault(f"{lag}", []).append(
                bench.train(
                    f"round_robin, staleness {lag}",
                    seed=seed,
                    tokens=chosen["tokens"][f"{lag}"],
                    lr=chosen["lr"][f"{lag}"],
                    strategy="round_robin",
                    workers=workers(lag + 1),
                )
            )
        for predict in ("none", "own"):
            trainings.setdefault(f"hogwild, predict {predict}", []).append(
                bench.train(
                    f"hogwild, 2 workers, predict {predict}",
                    seed=seed,
                    tokens=chosen["tokens"]["1"],
                    lr=chosen["lr"]["1"],
                    workers=workers(2),
                    predict=predict,
                )
            )
    steps = {
        name: Sample.of([one.steps_to(target) for one in of_seeds])
        for name, of_seeds in trainings.items()
    }
    n = count_parameters(model_file(**bench.setup.sizes))
    rows = [
        _row(name, trainings[name], steps[name], steps["0"].median, chosen["lr"], n)
        for name in trainings
    ]
    return Outcome(
        compared=_compared(scale, rows),
        table=rows,
        settings={**bench.setup.to_json(), **chosen, "parameters": n},
        results={
            "target": target,
            "steps_to_target": steps,
            "trainings": {k: [one.to_json() for one in v] for k, v in trainings.items()},
        },
    )


def _row(
    name: str, of_seeds: list[Training], steps: Sample, serial: float, lr: dict[str, float], n: int
) -> dict[str, Any]:
    observed = median(one.staleness for one in of_seeds)
    exact = name.isdecimal()
    tau = float(name) if exact else observed
    facts = Facts(strongly_convex=False, smooth=True, bounded_gradients=False, sgd=False, delta=1.0)
    bound = penalty(tau=tau, omega=n, rho=1.0, delta=1.0, facts=facts)
    rule = step_koloskova(tau_concurrency=tau, tau_max=tau, facts=facts)
    return {
        "workers": f"{int(name) + 1} in turn" if exact else f"2, {name}",
        "staleness": round(observed, 2),
        "steps to the loss": None if math.isinf(steps.median) else round(steps.median),
        "times those of serial": steps.median / serial,
        "step size": lr[name] if exact else lr["1"],
        "times that of serial": (lr[name] if exact else lr["1"]) / lr["0"],
        "Koloskova's rule": rule.values["constant_step"],
        "penalty of Proposition 4.1": bound.values["penalty"],
    }


def _compared(scale: Scale, rows: list[dict[str, Any]]) -> list[Compared]:
    exact = [(lag, row) for lag, row in zip(lags(scale), rows, strict=False)]
    ratios = {lag: row["times those of serial"] for lag, row in exact}
    text = ", ".join(f"{ratio:.2f} at {lag}" for lag, ratio in ratios.items())
    largest = max(ratios)
    finite = all(math.isfinite(ratio) for ratio in ratios.values())
    slope = max((ratios[lag] - 1) / lag for lag in ratios if lag) if finite else math.inf
    bound = rows[len(exact) - 1]["penalty of Proposition 4.1"]
    graceful = finite and slope < 1.0
    if scale.mode == "tiny":
        verdict = UNTOLD
    else:
        verdict = (HOLDS if largest >= 20 else PARTLY) if graceful else FAILS
    return [
        Compared(
            "graceful degradation, linear up to tau of about 20-30",
            f"steps to the loss, as multiples of serial's: {text}. "
            f"Each unit of staleness costs up to {slope:.2f} of a serial run; staleness above "
            f"{largest} was not tried.",
            verdict,
            timing=False,
        ),
        Compared(
            "compare to the prediction of Proposition 4.1",
            f"its penalty at staleness {largest} is {bound:.3g}, measured {ratios[largest]:.2f}. "
            "The proposition does not apply: the loss is not convex, AdamW is not SGD, and every "
            "gradient touches every parameter (rho = Delta = 1), so its bound says nothing here.",
            UNTOLD if scale.mode == "tiny" else FAILS,
            timing=False,
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Steps against staleness, and loss against steps."""
    figure, (left, right) = new_panels(
        ("staleness", "steps to the loss, multiples of serial's", "What staleness costs"),
        ("gradients", "held-out bits per byte", "Loss against gradients"),
    )
    exact = [row for row in outcome.table if "in turn" in row["workers"]]
    x = [row["staleness"] for row in exact]
    left.plot(
        x, [row["times those of serial"] for row in exact], "o-", color=INKS[0], label="in turn"
    )
    left.plot(x, [1 + tau for tau in x], "--", color=INKS[7], label="1 + staleness: no gain left")
    for ink, row in zip(INKS[1:], [row for row in outcome.table if row not in exact], strict=False):
        label = row["workers"]
        left.plot(row["staleness"], row["times those of serial"], "s", color=ink, label=label)
    left.legend(frameon=False, fontsize=7)
    for ink, (name, trainings) in zip(INKS, outcome.results["trainings"].items(), strict=False):
        label = f"staleness {name}" if name.isdecimal() else name
        right.plot(trainings[0]["steps"], trainings[0]["bits_per_byte"], color=ink, label=label)
    right.axhline(outcome.results["target"], color=INKS[7], linewidth=0.7, linestyle=":")
    legend(right)
    return figure


def _trial(bench: Bench, lag: int, lr: float, tokens: int, target: float) -> dict[str, Any]:
    one = bench.train(
        f"staleness {lag}, lr {lr:g}",
        seed=0,
        tokens=tokens,
        lr=lr,
        strategy="round_robin",
        workers=workers(lag + 1),
    )
    steps = one.steps_to(target)
    return {
        "staleness": lag,
        "lr": lr,
        "steps": None if math.isinf(steps) else round(steps),
        "bits_per_byte": round(one.end, 4),
    }


def tune() -> None:
    """Find the step size of every staleness: the fewest steps to the target of --quick.

    What an earlier search has tried is not tried again.
    """
    bench, target = Bench(setup(Scale("quick"))), 3.0
    before = recorded(ABOUT.name) if is_recorded(ABOUT.name) else {}
    trials: list[dict[str, Any]] = before.get("trials", [])
    quick: dict[str, Any] = {"target": target, "tokens": {}, "lr": {}}
    for lag, first in FIRST_RATES.items():
        most = int(150_000 * (1 + lag / 3))

        def tried(lr: float, lag: int = lag, most: int = most) -> tuple[float, float]:
            trial = next((t for t in trials if (t["staleness"], t["lr"]) == (lag, lr)), None)
            if trial is None:
                trial = _trial(bench, lag, lr, most, target)
                trials.append(trial)
                write_recorded(ABOUT.name, {**before, "trials": trials})
            return (trial["steps"] or math.inf, trial["bits_per_byte"])

        lr = descend(tried, first)
        best = next(t for t in trials if (t["staleness"], t["lr"]) == (lag, lr))
        quick["lr"][f"{lag}"] = best["lr"]
        per_step = bench.setup.batch * bench.setup.seq_len
        reached = best["steps"] is not None
        quick["tokens"][f"{lag}"] = int(1.2 * best["steps"] * per_step) if reached else most
    # the longer runs go to a lower loss, with the same step sizes
    tokens = {lag: 4 * amount for lag, amount in quick["tokens"].items()}
    full = {"target": 2.4, "tokens": tokens, "lr": quick["lr"]}
    write_recorded(ABOUT.name, {"quick": quick, "full": full, "trials": trials})


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
