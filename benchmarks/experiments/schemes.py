"""Ways to train one xLSTM with two workers: loss at equal time, and at equal gradients."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from experiment.language import Bench, Training, descend, setup, workers
from experiment.record import (
    FAILS,
    HOLDS,
    INKS,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = Experiment(
    name="schemes",
    title="Lock-free against round-robin, averaged runs and averaged gradients on xLSTM",
    source="document 001, Comparison to Alternatives; document 002",
    about=(
        "One worker, and five ways for two workers to train the same model together, each at the "
        "step size that a search found for it, on the same amount of text. The loss is compared "
        "after equally many gradients, and after equal time: that of the fastest scheme."
    ),
    packages=("torch",),
)
TWO = workers(2)
SCHEMES: dict[str, dict[str, Any]] = {
    "serial": {"strategy": "serial", "workers": workers(1)},
    "hogwild, predicted read": {"workers": TWO, "predict": "own"},
    "hogwild, plain": {"workers": TWO, "predict": "none"},
    "round-robin": {"strategy": "round_robin", "workers": TWO},
    "gradients averaged (sync)": {"strategy": "sync", "workers": TWO},
    "runs averaged once": {"strategy": "avg_runs", "workers": TWO},
    "runs averaged every 20 steps": {
        "strategy": "local_sgd", "average_every": 20, "workers": TWO,
    },
}  # fmt: skip
LOCK_FREE = ("hogwild, predicted read", "hogwild, plain")
FIRST_RATE = 1e-3
TIE = 0.02  # bits per byte within which two losses are called equal: what seeds differ by


def settings(scale: Scale) -> dict[str, Any]:
    """Recorded step sizes and the amount of text; arbitrary ones where numbers mean nothing."""
    if scale.mode == "tiny":
        return {"tokens": 12_000, "lr": dict.fromkeys(SCHEMES, 1e-3)}
    values: dict[str, Any] = recorded(ABOUT.name)[scale.mode]
    return values


def result(scale: Scale) -> Outcome:
    """Train by every scheme and compare the losses."""
    chosen, bench = settings(scale), Bench(setup(scale))
    trainings: dict[str, list[Training]] = {name: [] for name in SCHEMES}
    for seed in scale.seeds:
        for name, options in SCHEMES.items():
            trainings[name].append(
                bench.train(
                    name, seed=seed, tokens=chosen["tokens"], lr=chosen["lr"][name], **options
                )
            )
    rows = [_row(name, trainings, chosen["lr"][name], len(scale.seeds)) for name in SCHEMES]
    return Outcome(
        compared=_compared(scale, {row["scheme"]: row for row in rows}),
        table=rows,
        settings={**bench.setup.to_json(), **chosen},
        results={
            "trainings": {k: [one.to_json() for one in v] for k, v in trainings.items()},
            "at_equal_gradients": {k: Sample.of([o.end for o in v]) for k, v in trainings.items()},
        },
    )


def _row(name: str, trainings: dict[str, list[Training]], lr: float, seeds: int) -> dict[str, Any]:
    own = trainings[name]
    shortest = [min(v[k].seconds[-1] for v in trainings.values()) for k in range(seeds)]
    equal_time = [one.at_seconds(s) for one, s in zip(own, shortest, strict=True)]
    return {
        "scheme": name,
        "step size": lr,
        "tokens per second": round(median(one.tokens_per_s for one in own)),
        "bits per byte, equal gradients": median(one.end for one in own),
        "bits per byte, equal time": median(equal_time),
        "seconds": median(one.seconds[-1] for one in own),
        "staleness": round(median(one.staleness for one in own), 2),
    }


def _compared(scale: Scale, rows: dict[str, dict[str, Any]]) -> list[Compared]:
    per_time, per_gradient = "bits per byte, equal time", "bits per byte, equal gradients"
    free = min(LOCK_FREE, key=lambda name: rows[name][per_time])

    def told(other: str, axis: str) -> str:
        return f"{free} {rows[free][axis]:.3f}, {other} {rows[other][axis]:.3f}"

    def verdict(better: bool) -> str:
        return UNTOLD if scale.mode == "tiny" else HOLDS if better else FAILS

    def ahead(other: str, axis: str) -> bool:
        return bool(rows[free][axis] < rows[other][axis] - TIE)

    speed = rows[free]["tokens per second"] / rows["round-robin"]["tokens per second"]
    averaged = min(
        ("runs averaged once", "runs averaged every 20 steps"),
        key=lambda name: rows[name][per_gradient],
    )
    once = "runs averaged once"
    no_gain = bool(rows[once][per_time] > rows["serial"][per_time] - TIE)
    return [
        Compared(
            "Round-Robin is 10x slower than Hogwild! for fast gradients, a bad fit for xLSTM",
            f"lock-free computes {speed:.2f} times the gradients of round-robin; at equal time "
            f"{told('round-robin', per_time)} bits per byte. A gradient takes tens of "
            "milliseconds here, against which waiting for a turn is nothing.",
            verdict(speed >= 5),
        ),
        Compared(
            "MapReduce (independent runs, averaged): no improvement over serial",
            f"averaged once: {rows[once][per_time]:.3f} bits per byte at equal time, serial "
            f"{rows['serial'][per_time]:.3f}; averaged every 20 steps "
            f"{rows['runs averaged every 20 steps'][per_time]:.3f}.",
            verdict(no_gain),
        ),
        Compared(
            "Gradient averaging is slower; Hogwild! is optimal for xLSTM",
            f"at equal time {told('gradients averaged (sync)', per_time)}; after equally many "
            f"gradients {told('gradients averaged (sync)', per_gradient)} bits per byte, and "
            f"{averaged} {rows[averaged][per_gradient]:.3f}.",
            verdict(
                all(ahead(other, per_time) for other in rows if other not in (*LOCK_FREE, "serial"))
            ),
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Loss against gradients and against time."""
    figure, (left, right) = new_panels(
        ("gradients", "held-out bits per byte", "After equally many gradients"),
        ("seconds", "held-out bits per byte", "After equal time"),
    )
    for ink, (name, trainings) in zip(INKS, outcome.results["trainings"].items(), strict=False):
        one = trainings[0]
        left.plot(one["steps"], one["bits_per_byte"], color=ink, label=name)
        right.plot(one["seconds"], one["bits_per_byte"], color=ink, label=name)
    for axes in (left, right):
        axes.set_ylim(top=min(5.0, axes.get_ylim()[1]))
    legend(right)
    return figure


def tune() -> None:
    """Find each scheme's step size: the lowest loss at the text of --quick.

    What an earlier search has tried is not tried again.
    """
    bench, tokens = Bench(setup(Scale("quick"))), 200_000
    before = recorded(ABOUT.name) if is_recorded(ABOUT.name) else {}
    trials: list[dict[str, Any]] = before.get("trials", [])
    best: dict[str, float] = {}
    for name, options in SCHEMES.items():

        def tried(lr: float, name: str = name, options: dict[str, Any] = options) -> float:
            trial = next((t for t in trials if (t["scheme"], t["lr"]) == (name, lr)), None)
            if trial is None:
                one = bench.train(f"{name}, lr {lr:g}", seed=0, tokens=tokens, lr=lr, **options)
                trial = {"scheme": name, "lr": lr, "bits_per_byte": round(one.end, 4)}
                trials.append(trial)
                write_recorded(ABOUT.name, {**before, "trials": trials})
            return float(trial["bits_per_byte"])

        best[name] = descend(tried, FIRST_RATE)
    quick, full = ({"tokens": n, "lr": best} for n in (tokens, 6 * tokens))
    write_recorded(ABOUT.name, {"quick": quick, "full": full, "trials": trials})


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
