"""Does staleness cost less where updates are sparse: tables of n-grams under lock-free workers?

    python benchmarks/experiments/ngram_tables.py          40,000 tokens, orders 2-4: minutes
    python benchmarks/experiments/ngram_tables.py --full   150,000 tokens, orders 2-8: six minutes

Tokens are counted, and workers are real processes. Where workers outnumber the cores, they take
turns on them, so that staleness is still P - 1 on average; a busy machine changes no verdict.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from experiment.figures import Figure, intervals, new_panel
from experiment.language import workers
from experiment.record import Compared, Experiment, Outcome, Scale, run, say
from harness.claims import Claim, Sample, Twin
from harness.estimates import Mean
from harness.interleaved import with_twin
from training.recording import QUIET_OPTIONS

from mlxhog import TrainConfig, train
from mlxhog.arena.child import Lane
from mlxhog.theory.pair_runs import score
from mlxhog.training.plan import make_plan

ABOUT = Experiment(
    name="ngram_tables",
    title="Staleness of sparse parameters",
    source="documents 002 and 004, sparse updates",
    about=(
        "`tiny` on bytes, with tables of n-grams and without, trained by one worker and by "
        "lock-free workers, all on as much text. The cost of staleness is the held-out loss above "
        "that of one worker, in bits per byte. Tables are read and written row by row, and two "
        "batches in succession share few rows of high orders."
    ),
    packages=("torch",),
)
BACKEND = "torch:cpu"
LEVEL = 0.02  # bits per byte within which two ways are level
DENSE, TABLES = "without tables", "with tables"
SERIAL, LOCK_FREE = "serial", "hogwild"
Arm = tuple[str, str, int]
"""With or without tables, the strategy, and the number of workers."""


def arms(scale: Scale) -> list[Arm]:
    """One worker, and each number of lock-free ones."""
    counts: tuple[int, ...] = scale.pick(tiny=(2,), quick=(2,), full=(2, 4))
    return [
        (model, *way)
        for model in (DENSE, TABLES)
        for way in ((SERIAL, 1), *((LOCK_FREE, p) for p in counts))
    ]


def result(scale: Scale) -> Outcome:
    """Train every arm with every seed."""
    orders: str = scale.pick(tiny="2-3", quick="2-4", full="2-8")
    tokens: int = scale.pick(tiny=4_000, quick=40_000, full=150_000)
    seeds: tuple[int, ...] = scale.pick(tiny=(1,), quick=(1, 2, 3), full=(1, 2, 3))
    fields = {DENSE: None, TABLES: f"ngram_orders={orders}"}

    def end(arm: Arm, seed: int) -> float:
        model, strategy, count = arm
        bits, staleness = _bits(
            set=fields[model],
            strategy=strategy,
            workers=workers(count, BACKEND),
            tokens=tokens,
            seed=seed,
            eval_tokens=scale.pick(tiny=1024, quick=16_384, full=65_536),
        )
        say(
            f"  {model:15} {strategy:8} {count}  seed {seed}  {bits:.3f} bits per byte  "
            f"staleness {staleness:.2f}"
        )
        return bits

    twin = (DENSE, LOCK_FREE, 2)
    bits, again = with_twin(seeds, arms(scale), end, twin=twin)
    costs = {
        arm: [a - b for a, b in zip(own, bits[arm[0], SERIAL, 1], strict=True)]
        for arm, own in bits.items()
    }
    return Outcome(
        compared=_compared(costs),
        table=[
            {
                "model": arm[0],
                "strategy": arm[1],
                "workers": arm[2],
                "bits per byte": Sample.of(own).spelt(".3f"),
                "above one worker": round(median(costs[arm]), 3),
            }
            for arm, own in bits.items()
        ],
        claims=_claims(scale, costs),
        settings={"model": "tiny, bytes", "ngram_orders": orders, "tokens": tokens},
        results={"bits_per_byte": {", ".join(map(str, arm)): own for arm, own in bits.items()}},
        seeds=seeds,
        twins=[Twin.of(f"bits per byte of {', '.join(map(str, twin))}", bits[twin], again)],
    )


def _bits(*, eval_tokens: int, **options: Any) -> tuple[float, float]:
    """Held-out bits per byte at the end of a training, and the mean staleness of its steps."""
    out = tempfile.mkdtemp(prefix="mlxhog-benchmark-")
    try:
        chosen = {**QUIET_OPTIONS, "model": "tiny", "tokenizer": "bytes", "threads": 1}
        config = TrainConfig(**{**chosen, "out": out, **options})
        ends = train(config)
        if ends.status == "interrupted":
            raise KeyboardInterrupt
        held_out = make_plan(config).data.val
        place = (BACKEND, Path(str(ends.checkpoint)), held_out, config.seq_len, eval_tokens)
        bits = score(Lane(None, 0), *place)
        steps = max(1, sum(ends.staleness.values()))
        return bits, sum(k * n for k, n in ends.staleness.items()) / steps
    finally:
        shutil.rmtree(out)


def _claims(scale: Scale, costs: Mapping[Arm, list[float]]) -> list[Claim]:
    if scale.mode == "tiny":
        return []
    most = max(arm[2] for arm in costs)
    cost = Mean.of(costs[TABLES, LOCK_FREE, most])
    lost = f"bits per byte that {most} lock-free workers cost, with tables"
    return [Claim.of(lost, cost, "<=", 0.05, timing=False)]


def _compared(costs: Mapping[Arm, list[float]]) -> list[Compared]:
    counts = sorted({arm[2] for arm in costs if arm[1] == LOCK_FREE})
    less = [
        Claim.of(
            f"bits per byte that {count} lock-free workers cost, with tables less without",
            Mean.of_differences(costs[TABLES, LOCK_FREE, count], costs[DENSE, LOCK_FREE, count]),
            "<=",
            0.0,
            timing=False,
        )
        for count in counts
    ]
    level = [
        Claim.of(
            f"bits per byte that {count} lock-free workers cost, with tables",
            Mean.of(costs[TABLES, LOCK_FREE, count]),
            "within",
            LEVEL,
            least=-LEVEL,
            timing=False,
        )
        for count in counts
    ]
    return [
        Compared.of("staleness costs less where updates are sparse", *less),
        Compared.of("sparse updates make lock-free training as good as serial training", *level),
    ]


def draw(outcome: Outcome) -> Figure:
    """The loss of every arm, all seeds."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading=ABOUT.title)
    intervals(axes, outcome.results["bits_per_byte"])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
