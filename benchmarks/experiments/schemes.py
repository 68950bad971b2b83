"""Ways to train one xLSTM with two workers: loss at equal time, and at equal gradients."""

from __future__ import annotations

from statistics import median
from typing import Any

from experiment.figures import Figure
from experiment.language import Bench, Training, loss_figure, setup, trainings_json, workers
from experiment.record import Compared, Experiment, Outcome, Scale, run, told
from experiment.searches import Trials, descend, recorded
from harness.claims import Sample
from harness.interleaved import take_turns

BUDGET = {"order": 80, "quick_s": 200, "full_s": 14400}
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

    def train(name: str, seed: int) -> Training:
        budget = {"tokens": chosen["tokens"], "lr": chosen["lr"][name]}
        return bench.train(name, seed=seed, **budget, **SCHEMES[name])

    trainings = take_turns(scale.seeds, SCHEMES, train)
    rows = [_row(name, trainings, chosen["lr"][name], len(scale.seeds)) for name in SCHEMES]
    return Outcome(
        compared=_compared({row["scheme"]: row for row in rows}),
        table=rows,
        settings={**bench.setup.to_json(), **chosen},
        results={
            "trainings": trainings_json(trainings),
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


def _compared(rows: dict[str, dict[str, Any]]) -> list[Compared]:
    per_time, per_gradient = "bits per byte, equal time", "bits per byte, equal gradients"
    free = min(LOCK_FREE, key=lambda name: rows[name][per_time])

    def both(other: str, axis: str) -> str:
        return f"{free} {rows[free][axis]:.3f}, {other} {rows[other][axis]:.3f}"

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
            f"{both('round-robin', per_time)} bits per byte. A gradient takes tens of "
            "milliseconds here, against which waiting for a turn is nothing.",
            told(speed >= 5),
        ),
        Compared(
            "MapReduce (independent runs, averaged): no improvement over serial",
            f"averaged once: {rows[once][per_time]:.3f} bits per byte at equal time, serial "
            f"{rows['serial'][per_time]:.3f}; averaged every 20 steps "
            f"{rows['runs averaged every 20 steps'][per_time]:.3f}.",
            told(no_gain),
        ),
        Compared(
            "Gradient averaging is slower; Hogwild! is optimal for xLSTM",
            f"at equal time {both('gradients averaged (sync)', per_time)}; after equally many "
            f"gradients {both('gradients averaged (sync)', per_gradient)} bits per byte, and "
            f"{averaged} {rows[averaged][per_gradient]:.3f}.",
            told(
                all(ahead(other, per_time) for other in rows if other not in (*LOCK_FREE, "serial"))
            ),
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Loss against gradients and against time."""
    return loss_figure(outcome, most=5.0)


def tune() -> None:
    """Find each scheme's step size: the lowest loss at the text of --quick.

    What an earlier search has tried is not tried again.
    """
    bench, tokens, trials = Bench(setup(Scale("quick"))), 200_000, Trials(ABOUT.name)

    def best(name: str, options: dict[str, Any]) -> float:
        def bits(lr: float) -> float:
            title = f"{name}, lr {lr:g}"
            return bench.train(title, seed=0, tokens=tokens, lr=lr, **options).end

        return descend(
            lambda lr: trials.score({"scheme": name, "lr": lr}, lambda: bits(lr)), FIRST_RATE
        )

    lr = {name: best(name, options) for name, options in SCHEMES.items()}
    trials.settings = {
        "quick": {"tokens": tokens, "lr": lr}, "full": {"tokens": 6 * tokens, "lr": lr},
    }  # fmt: skip
    trials.write()


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
