"""A source of sparsity that document 002 names: dropout.

    python benchmarks/sparsity_sources.py           dropout 0, .1, .5
    python benchmarks/sparsity_sources.py --quick   fewer gradients

Dropout: the small xlstm model with mLSTM and sLSTM blocks, gradients of batches of one sequence and
of eight, and of a single token, with the share of elements that a gradient touches and the
probability that two meet.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from harness.claims import Findings, flags, measured
from harness.machine import smallest

from mlxhog.arena.child import Child
from mlxhog.config.sources import Assignment
from mlxhog.theory.advisor.measuring import weighted
from mlxhog.theory.analysis import AnalyzeConfig
from mlxhog.theory.analysis.analyze import plan_of, subject_of, tickets
from mlxhog.theory.analysis.conflicts import measure
from mlxhog.theory.target import find_target

MODEL = """
model_type: xlstm_v1
vocab_size: 320
embedding_dim: 64
num_blocks: 2
slstm_at: [1]
mlstm_block: {mlstm: {num_heads: 4}}
slstm_block: {slstm: {num_heads: 4}}
context_length: 64
chunk_size: 16
dropout: %g
bos_token_id: 256
"""
SHAPES = ((1, 1), (1, 64), (8, 64))
RATES = (0.0, 0.1, 0.5)


def dropout(findings: Findings, samples: int) -> None:
    """Density and conflict of gradients, by rate and by the size of a batch."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        for rate in RATES:
            path = Path(folder) / f"dropout-{rate:g}.yaml"
            path.write_text(MODEL % rate)
            for sequences, length in SHAPES:
                values = {"seq_len": length, "batch_size": sequences, "threads": 1}
                options = [Assignment(name, value, "benchmark") for name, value in values.items()]
                target = find_target(str(path), options, Path(folder))
                plan = plan_of(target, AnalyzeConfig(backend="mlx:cpu"))
                subject = subject_of(target, plan)
                drawn = tickets(subject.batches().n_tickets, samples, 0)
                with Child() as child:
                    blocks = measure(child, subject, drawn, lambda step: None).blocks
                p_conf, density = weighted(blocks)
                rows.append(
                    {
                        "dropout": rate,
                        "tokens": sequences * length,
                        "density": density,
                        "p_conf": p_conf,
                    }
                )
                print(
                    f"dropout {rate:3g}, {sequences * length:4} tokens: a gradient touches "
                    f"{density:6.1%}, two meet with probability {p_conf:.2f}",
                    flush=True,
                )
    findings.results["dropout"] = rows
    whole = [row for row in rows if row["tokens"] == 512]
    least = min(row["p_conf"] for row in whole)
    findings.at_most("batches of 512 tokens: 1 - least p_conf", 1 - least, 0.1, timing=False)


def main() -> int:
    """Measure."""
    chosen = flags(__doc__, quick="fewer gradients").parse_args()
    return measured("sparsity_sources", chosen, gradients)


def gradients(findings: Findings, chosen: Namespace) -> None:
    """Gradients under dropout."""
    dropout(findings, smallest(4, 12 if chosen.quick else 48))


if __name__ == "__main__":
    raise SystemExit(main())
