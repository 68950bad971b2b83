"""What does a teacher of counted n-grams gain after equally many tokens, and what does it cost?

    python benchmarks/experiments/teacher.py          50,000 tokens, three seeds: a minute
    python benchmarks/experiments/teacher.py --full   100,000 tokens, three seeds: four minutes

Tokens are counted, so a busy machine changes no loss; the cost of a step wants a quiet one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from experiment.figures import Figure, intervals, new_panel
from experiment.language import Bench, Training, setup, workers
from experiment.record import Compared, Experiment, Outcome, Scale, run
from harness.claims import Claim, Sample, Twin
from harness.estimates import Mean, Ratio
from harness.interleaved import with_twin

from mlxhog.config.optimizers import MUON_LR

BUDGET = {"order": 140, "full_s": 120}
ABOUT = Experiment(
    name="teacher",
    title="Counted n-grams as a teacher",
    source="Malagutti et al. 2024, arXiv:2403.17240; the default of `--teacher counts`",
    about=(
        "`tiny` on bytes with Muon, one worker, with and without the distribution of counted "
        "7-grams in its targets, which read the whole training text. All trainings read as much "
        "text and have the same evaluation, against the bytes alone."
    ),
    packages=("mlx",),
)
WITHOUT, WITH = "without", "counts(weight=0.9)"
ARMS: Mapping[str, str] = {WITHOUT: "off", WITH: WITH, "counts(weight=0.5)": "counts(weight=0.5)"}
GAIN = 0.03
"""Bits per byte that the teacher gains at least."""
COST = 1.05
"""Most time of a step with the teacher over one without."""


def result(scale: Scale) -> Outcome:
    """Train every arm with every seed."""
    held_out: int = scale.pick(tiny=1024, quick=32_768, full=32_768)
    bench = Bench(replace(setup(scale), looks=2, eval_tokens=held_out))
    tokens: int = scale.pick(tiny=2_000, quick=50_000, full=100_000)
    seeds = scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3))

    def trained(name: str, seed: int) -> Training:
        options: Mapping[str, Any] = {
            "optimizer": "muon", "strategy": "serial", "schedule": "cosine", "lr": MUON_LR,
            "workers": workers(1, "mlx:cpu"), "teacher": ARMS[name],
        }  # fmt: skip
        return bench.train(name, seed=seed, tokens=tokens, **options)

    trainings, again = with_twin(seeds, ARMS, trained, twin=WITHOUT)
    bits = {name: [one.end for one in every] for name, every in trainings.items()}
    costs = {
        name: [
            plain.tokens_per_s / one.tokens_per_s
            for one, plain in zip(every, trainings[WITHOUT], strict=True)
        ]
        for name, every in trainings.items()
    }
    samples = {name: Sample.of(values) for name, values in bits.items()}
    gain = Mean.of_differences(bits[WITHOUT], bits[WITH])
    name = f"bits per byte that the teacher gains, {tokens:,} tokens"
    ones = [1.0] * len(seeds)
    claims = [
        Claim.of(name, gain, ">=", GAIN, timing=False),
        Claim.of(
            "time of a step with the teacher / without", Ratio.of(costs[WITH], ones), "<=", COST
        ),
    ]
    helps = Claim.of(name, gain, ">=", 0.0, timing=False)
    return Outcome(
        compared=[Compared.of("smoothed n-grams as targets help", helps)],
        table=[
            {
                "teacher": name,
                "bits per byte": sample.spelt(".3f"),
                "less without": round(sample.median - samples[WITHOUT].median, 3),
                "time of a step": round(median(costs[name]), 3),
            }
            for name, sample in samples.items()
        ],
        claims=[] if scale.mode == "tiny" else claims,
        settings={
            **bench.setup.to_json(),
            "optimizer": "muon",
            "schedule": "cosine",
            "lr": MUON_LR,
            "tokens": tokens,
        },
        results={"bits_per_byte": bits, "costs": costs},
        twins=[
            Twin.of(
                "tokens per second without the teacher",
                [one.tokens_per_s for one in trainings[WITHOUT]],
                [one.tokens_per_s for one in again],
            )
        ],
        seeds=seeds,
    )


def draw(outcome: Outcome) -> Figure:
    """The loss of each arm with its interval."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading=ABOUT.title)
    intervals(axes, outcome.results["bits_per_byte"])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
