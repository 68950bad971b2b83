"""What a shared embedding does to the ranking of candidates (document 001).

    python benchmarks/mad_shared_embedding.py            twelve candidates, two tasks: half an hour
    python benchmarks/mad_shared_embedding.py --quick    six candidates, few steps: a minute or two

The same candidates are trained twice with equal rows and initial values: each with an embedding of
its own, and one after the other on one table, as `mad search --share-embedding` does with one
candidate at once. The scores are compared by Spearman's rho, with a bootstrap interval over the
candidates. Sharing pays only if it keeps the order.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from statistics import fmean

from harness.claims import Findings, flags, measured
from harness.machine import smallest
from mad.ranks import RankCorrelation
from mad_rungs import PAIRS, TASKS

from mlxhog.mad.run import Callbacks, RunConfig
from mlxhog.mad.suites import at_dim, expand, fixed, only, suite
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import shared_tables
from mlxhog.models.mad.sequence import parse


def main() -> int:
    """Train every candidate both ways, and compare."""
    parser = flags(__doc__, quick="six candidates, few steps")
    return measured("mad_shared_embedding", parser.parse_args(), measure, packages=("torch",))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Compare the order of the scores."""
    candidates = smallest(PAIRS[:3], PAIRS[::2] if chosen.quick else PAIRS)
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (600, 64))
    runs = {layers: runs_of(layers, steps, dim) for layers in candidates}
    scores: dict[str, list[float]] = {"own": [], "shared": []}
    with shared_tables(runs[candidates[0]]) as run:
        for layers, configs in runs.items():
            own = [train(config).acc_macro for config in configs]
            shared = [run(config, callbacks=Callbacks(), rungs=()).acc_macro for config in configs]
            scores["own"].append(fmean(own))
            scores["shared"].append(fmean(shared))
            print(f"  {layers:40} own {fmean(own):.3f}  shared {fmean(shared):.3f}", flush=True)
    rank = RankCorrelation.of(scores["own"], scores["shared"])
    print(f"  Spearman's rho {rank.rho:.3f} ({rank.low:.3f} to {rank.high:.3f})")
    findings.results |= {
        "candidates": candidates,
        "steps": steps,
        "dim": dim,
        "scores": scores,
        "rho": asdict(rank),
    }


def runs_of(layers: str, steps: int, dim: int) -> list[RunConfig]:
    """Return the runs of a candidate."""
    protocol = {"steps": steps, "eval_every": steps}
    chosen = at_dim(only(fixed(suite("smoke"), protocol), TASKS), dim)
    return list(expand(chosen, parse(layers), [0], protocol=protocol))


if __name__ == "__main__":
    raise SystemExit(main())
