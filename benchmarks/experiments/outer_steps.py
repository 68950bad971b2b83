"""DiLoCo beside Local SGD on a language model: what the outer step and what AdamW inside does."""

from __future__ import annotations

from statistics import median
from typing import Any

from experiment.figures import INKS, Figure, curves, legend, new_panels
from experiment.language import Bench, Training, setup, trainings_json, workers
from experiment.record import HOLDS, Compared, Difference, Experiment, Outcome, Scale, run
from experiment.searches import cheapest
from harness.claims import Claim
from harness.interleaved import take_turns

BUDGET = {"order": 200, "quick_s": 90, "full_s": 3600}
ABOUT = Experiment(
    name="outer_steps",
    title="DiLoCo against Local SGD on a language model",
    source="document 003, exercise 6",
    about=(
        "Two workers with replicas of their own that meet every H steps: plain SGD averaged (the "
        "document's Local SGD), AdamW averaged, and AdamW with Nesterov's outer step (DiLoCo). All "
        "see as much text and send as much; each has the best of its step sizes by a run of a seed "
        "that nothing else uses. The second arm tells the inner optimizer from the outer step."
    ),
    packages=("torch",),
)
WORKERS = 2
ARMS: dict[str, dict[str, Any]] = {
    "Local SGD, inner SGD": {"strategy": "local_sgd", "optimizer": "sgd"},
    "Local SGD, inner AdamW": {"strategy": "local_sgd", "optimizer": "adamw"},
    "DiLoCo, inner AdamW": {"strategy": "diloco", "optimizer": "adamw"},
}
RATES = {"sgd": (0.1, 0.3, 1.0), "adamw": (1e-3, 2e-3, 4e-3)}
TUNED_ON = 101
SGD, ADAMW, DILOCO = ARMS


def result(scale: Scale) -> Outcome:
    """Train the three."""
    bench = Bench(setup(scale))
    tokens = scale.pick(tiny=2_048, quick=30_000, full=600_000)
    every = scale.pick(tiny=4, quick=20, full=50)
    best = {name: tuned(bench, scale, name, tokens, every) for name in ARMS}
    seeds = scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3, 4, 5))
    runs = take_turns(
        seeds, ARMS, lambda name, seed: one(bench, name, seed, tokens, every, best[name])
    )
    return Outcome(
        compared=compared(runs),
        table=[
            {
                "arm": name,
                "lr": best[name],
                "bits per byte": median(t.end for t in own),
                "lowest": min(t.end for t in own),
                "highest": max(t.end for t in own),
                "tokens per second": round(median(t.tokens_per_s for t in own)),
            }
            for name, own in runs.items()
        ],
        claims=[
            Claim("mean staleness", max(t.staleness for own in runs.values() for t in own), "==",
                  0.0, timing=False)
        ],
        settings={
            **bench.setup.to_json(), "optimizer": "of the arm", "tokens": tokens,
            "average_every": every, "lr": best, "searched": {k: list(v) for k, v in RATES.items()},
            "tuned_on_seed": TUNED_ON, "outer_lr": 0.7, "outer_momentum": 0.9,
        },
        results={"trainings": trainings_json(runs)},
        seeds=seeds,
    )  # fmt: skip


def one(bench: Bench, name: str, seed: int, tokens: int, every: int, lr: float) -> Training:
    """One run of an arm."""
    return bench.train(
        f"{name}, lr {lr:g}", seed=seed, tokens=tokens, lr=lr, average_every=every,
        workers=workers(WORKERS), **ARMS[name],
    )  # fmt: skip


def tuned(bench: Bench, scale: Scale, name: str, tokens: int, every: int) -> float:
    """The step size with the lowest loss."""
    rates = RATES[ARMS[name]["optimizer"]]
    rates = scale.pick(tiny=rates[:1], quick=rates, full=rates)
    return cheapest(rates, lambda lr: one(bench, name, TUNED_ON, tokens, every, lr).end)


def compared(runs: dict[str, list[Training]]) -> list[Compared]:
    """What the document says, beside this."""
    whole, inner, outer = (
        apart(runs, a, b) for a, b in ((DILOCO, SGD), (ADAMW, SGD), (DILOCO, ADAMW))
    )

    return [
        Compared(
            "DiLoCo reaches a lower perplexity than Local SGD at equal communication",
            f"DiLoCo less Local SGD with SGD inside: {whole} bits per byte (95 % interval).",
            whole.below(), timing=False,
        ),
        Compared(
            "because of its outer momentum, beside the inner optimizer",
            f"Of that, AdamW in place of SGD is {inner}, the outer step {outer}.",
            outer.below(), timing=False,
        ),
        Compared(
            "Communication volume is the same",
            "One all-reduce of the parameters a meeting, in all three.",
            HOLDS, timing=False,
        ),
    ]  # fmt: skip


def apart(runs: dict[str, list[Training]], a: str, b: str) -> Difference:
    """Final loss of one arm less that of another, seed by seed."""
    return Difference.of(x.end - y.end for x, y in zip(runs[a], runs[b], strict=True))


def draw(outcome: Outcome) -> Figure:
    """Loss over gradients, and the ends."""
    figure, (losses, ends) = new_panels(
        ("gradients", "held-out bits per byte", "First seed"),
        ("", "held-out bits per byte", "At the end, every seed"),
    )
    trainings = outcome.results["trainings"]
    firsts = {name: (own[0]["steps"], own[0]["bits_per_byte"]) for name, own in trainings.items()}
    curves(losses, firsts)
    for k, (ink, own) in enumerate(zip(INKS, trainings.values(), strict=False)):
        ends.plot([k] * len(own), [one["bits_per_byte"][-1] for one in own], "o", color=ink)
    ends.set_xticks(range(len(ARMS)), ["SGD", "AdamW", "DiLoCo"])
    legend(losses)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
