"""Whether a rung ranks candidates alike on PyTorch and on MLX.

    python benchmarks/mad_rungs.py                twelve candidates, two tasks: ten minutes
    python benchmarks/mad_rungs.py --quick        six candidates, few steps: a minute or two

Both backends get the same rows and the same initial values. PyTorch computes with the native
kernels, MLX with its own operators: with native kernels both have the same bits, and there would be
nothing to compare. So the losses drift apart by rounding, as those of a CPU and of a GPU do.
Successive halving drops candidates by their accuracy at a rung. So the accuracies at a rung are
compared by Spearman's rho, with a bootstrap interval over the candidates. A rung of another seed on
the same backend shows how far two rankings differ anyway.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from dataclasses import asdict
from statistics import fmean

from harness.claims import Claim, Findings, flags, measured
from harness.machine import smallest
from mad.ranks import RankCorrelation

from mlxhog.mad.suites import at_dim, expand, fixed, only, suite
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import parse

MIXERS = ("mlstm", "slstm", "mh-attention", "gated-conv")
PAIRS = [f"{a} swiglu {b} swiglu" for a, b in itertools.product(MIXERS, MIXERS) if a != b]
TASKS = ("in-context-recall", "selective-copying")
LEAST = 0.9
"""Rho; a rung that ranks otherwise would drop other candidates."""


def main() -> int:
    """Train to the rung on both backends, and compare."""
    parser = flags(__doc__, quick="six candidates, few steps")
    return measured("mad_rungs", parser.parse_args(), measure, packages=("torch", "mlx"))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Train every candidate three times."""
    candidates = smallest(PAIRS[:3], PAIRS[::2] if chosen.quick else PAIRS)
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (150, 64))
    sides = {
        "torch": ("torch:cpu", "native", 0),
        "mlx": ("mlx:cpu", "reference", 0),
        "another seed": ("torch:cpu", "native", 1),
    }
    values: dict[str, list[float]] = {side: [] for side in sides}
    for layers in candidates:
        for side, (backend, kernels, seed) in sides.items():
            values[side].append(accuracy(layers, backend, kernels, seed, steps, dim))
        shown = "  ".join(f"{side} {own[-1]:.3f}" for side, own in values.items())
        print(f"  {layers:40} {shown}", flush=True)
    results = {side: RankCorrelation.of(values["torch"], values[side]) for side in list(sides)[1:]}
    backends = results["mlx"]
    for side, rank in results.items():
        within = f"{rank.rho:.3f} ({rank.low:.3f} to {rank.high:.3f})"
        print(f"  Spearman's rho of torch and {side}: {within}")
    if not chosen.quick:
        name = "Spearman's rho of a rung on torch and on mlx"
        interval = (backends.low, backends.high)
        findings.claims.append(
            Claim(name, backends.rho, ">=", LEAST, False, interval, len(candidates))
        )
    findings.results |= {
        "candidates": candidates,
        "rung": steps,
        "dim": dim,
        "accuracies": values,
        "rho": {side: asdict(rank) for side, rank in results.items()},
    }


def accuracy(layers: str, backend: str, kernels: str, seed: int, steps: int, dim: int) -> float:
    """Mean accuracy of a candidate over the tasks, at a rung."""
    protocol = {"steps": steps, "eval_every": steps}
    chosen = at_dim(only(fixed(suite("smoke"), protocol), TASKS), dim)
    runs = expand(chosen, parse(layers), [seed], workers=backend, protocol=protocol)
    options = {"kernels": kernels}
    return fmean(train(config, worker_options=options).acc_macro for config in runs)


if __name__ == "__main__":
    raise SystemExit(main())
