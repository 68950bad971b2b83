"""Warm-up, decay, batch and weight decay of a training that lasts a minute.

    python benchmarks/experiments/minute.py          150,000 tokens, two seeds: under 5 minutes
    python benchmarks/experiments/minute.py --full   a million tokens, three seeds: 40 minutes

A million is what `mlxhog train` reads in its minute on two cores (`docs/numbers.md`); what is best
after less text need not be best after that much. Tokens are counted, so a busy machine changes no
loss; the tokens per second of a batch want a quiet one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from experiment.figures import INKS, Figure, new_panel
from experiment.language import Bench, setup, workers
from experiment.record import FAILS, HOLDS, UNTOLD, Compared, Experiment, Outcome, Scale, run
from harness.claims import Claim, Sample
from harness.interleaved import take_turns

from mlxhog import TrainConfig
from mlxhog.config.optimizers import MUON_LR, Muon
from mlxhog.config.schedules import Cosine

ABOUT = Experiment(
    name="minute",
    title="Warm-up, decay and batch of a minute",
    source="the defaults of mlxhog train",
    about=(
        "`tiny` with Muon, shared moments and look-ahead, two workers that apply in turn, so that "
        "every gradient is as old as two equal lock-free workers make it. Of the defaults one is "
        "changed at a time, all trainings read as much text. A change can be told from the default "
        "where the ranges over seeds do not overlap. The tokens per second are of two lock-free "
        "workers, for each batch."
    ),
    packages=("mlx",),
)
BACKEND = "mlx:cpu"
COMMON: Mapping[str, Any] = {
    "optimizer": "muon",
    "moments": "shared",
    "predict": "last",
    "workers": workers(2, BACKEND),
    "lr": MUON_LR,
}
DEFAULTS: Mapping[str, Any] = {
    "warmup": Cosine().warmup,
    "schedule": Cosine.name,
    "lr_floor": Cosine().lr_floor,
    "batch_size": TrainConfig().batch_size,
    "weight_decay": Muon().weight_decay,
}
BATCHES = (2, 4, 8)
DEFAULT = "the defaults"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "warm-up over 1 %": {"warmup": 0.01},
    "warm-up over 10 %": {"warmup": 0.1},
    "cosine to 0": {"lr_floor": 0.0},
    "constant, falling over the last fifth": {"schedule": "wsd"},
    "constant": {"schedule": "constant"},
    "2 sequences": {"batch_size": 2},
    "2 sequences, lr / sqrt(2)": {"batch_size": 2, "lr": MUON_LR / 2**0.5},
    "8 sequences": {"batch_size": 8},
    "8 sequences, lr sqrt(2)": {"batch_size": 8, "lr": MUON_LR * 2**0.5},
    "no weight decay": {"weight_decay": 0.0},
}
NEAR = 0.02
"""Bits per byte above the best that count as near it: about what seeds differ by."""
LOWER, HIGHER, SAME = "lower", "higher", "cannot be told"


def result(scale: Scale) -> Outcome:
    """Train every variant with every seed, and measure how fast each batch is."""
    held_out: int = scale.pick(tiny=1024, quick=32_768, full=65_536)
    bench = Bench(replace(setup(scale), looks=2, eval_tokens=held_out))
    tokens: int = scale.pick(tiny=2_000, quick=150_000, full=1_000_000)
    timed: int = scale.pick(tiny=2_000, quick=100_000, full=300_000)
    seeds = scale.pick(tiny=(1,), quick=(1, 2), full=(1, 2, 3))

    def end(name: str, seed: int) -> float:
        options = {**COMMON, **DEFAULTS, "strategy": "round_robin", **VARIANTS[name]}
        if options["schedule"] == "constant":
            del options["lr_floor"]  # which it has not
        return bench.train(name, seed=seed, tokens=tokens, **options).end

    bits = take_turns(seeds, VARIANTS, end)
    speeds = {
        batch: bench.train(
            f"{batch} sequences, lock-free", seed=0, tokens=timed, strategy="hogwild",
            **{**COMMON, **DEFAULTS, "batch_size": batch},
        ).tokens_per_s
        for batch in BATCHES
    }  # fmt: skip
    samples = {name: Sample.of(values) for name, values in bits.items()}
    batches = {name: {**DEFAULTS, **changed}["batch_size"] for name, changed in VARIANTS.items()}
    best = min(samples.values(), key=lambda sample: sample.median).median
    return Outcome(
        compared=_compared(scale, samples, tokens),
        table=[
            {
                "changed": name,
                "bits per byte": sample.spelt(".3f"),
                "less the default": round(sample.median - samples[DEFAULT].median, 3),
                "than the default": compare(sample, samples[DEFAULT]) if name != DEFAULT else "",
                "tokens per second": round(speeds[batches[name]]),
            }
            for name, sample in samples.items()
        ],
        claims=[]
        if scale.mode == "tiny"
        else [
            Claim(
                f"bits per byte of the defaults above the best of all, {tokens:,} tokens",
                round(samples[DEFAULT].median - best, 4),
                "<=",
                NEAR,
                timing=False,
            )
        ],
        settings={
            **bench.setup.to_json(),
            **DEFAULTS,
            "schedule": f"{DEFAULTS['schedule']}, but where another is named",
            "optimizer": "muon, shared moments, look-ahead",
            "lr": MUON_LR,
            "tokens": tokens,
        },
        results={"bits_per_byte": bits, "tokens_per_s": speeds},
        seeds=seeds,
    )


def compare(sample: Sample, default: Sample) -> str:
    """Whether a loss is lower or higher than the default's: where no seed says otherwise."""
    if sample.repeats < 2 or (sample.low <= default.high and default.low <= sample.high):
        return SAME
    return LOWER if sample.high < default.low else HIGHER


def _compared(scale: Scale, samples: Mapping[str, Sample], tokens: int) -> list[Compared]:
    told = {name: compare(sample, samples[DEFAULT]) for name, sample in samples.items()}
    better = _named(told, samples, LOWER)
    text = f"After {tokens:,} tokens, of {len(VARIANTS) - 1} changes of one default: lower loss: "
    text += f"{better or 'none'}; higher: {_named(told, samples, HIGHER) or 'none'}; the others "
    text += "cannot be told from it."
    verdict = UNTOLD if scale.mode == "tiny" else FAILS if better else HOLDS
    claim = "no other warm-up, decay, batch or weight decay is better than the default"
    return [Compared(claim, text, verdict, timing=False)]


def _named(told: Mapping[str, str], samples: Mapping[str, Sample], which: str) -> str:
    names: Sequence[str] = [name for name, verdict in told.items() if verdict == which]
    default = samples[DEFAULT].median
    return ", ".join(f"{name} ({samples[name].median - default:+.3f})" for name in names)


def draw(outcome: Outcome) -> Figure:
    """The loss of each variant with its range, the default's as a line."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading=ABOUT.title)
    bits = outcome.results["bits_per_byte"]
    for place, (name, values) in enumerate(reversed(bits.items())):
        ink = INKS[0] if name == DEFAULT else INKS[1]
        axes.plot(values, [place] * len(values), "o-", color=ink, markersize=4)
    axes.axvline(median(bits[DEFAULT]), color="gray", linestyle=":")
    axes.set_yticks(range(len(bits)), list(reversed(bits)), fontsize=7)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
