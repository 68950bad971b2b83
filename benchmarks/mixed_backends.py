"""MLX beside PyTorch on one set of parameters: convergence, and whether both compute the same.

    python benchmarks/mixed_backends.py          two workers
    python benchmarks/mixed_backends.py --full   and 4 + 4, 8 + 8 processes

Lock-free workers on the same parameters, Muon with its defaults: all of PyTorch, all of MLX, half
of each. Where they are more than the cores, this shows whether they work and converge, and no
speed. Beside it, both backends compute the model's outputs and gradients, as `mlxhog parity` does.
"""

from dataclasses import asdict
from statistics import median

from harness.claims import Claim, Control, counted
from harness.estimates import Mean
from harness.frame import run
from harness.interleaved import take_turns
from harness.machine import smallest
from parity_false_failures import SIDES, compare_all, computed
from training.recording import SIZES, TINY, Bench, enough_cores, workers

from mlxhog.conformance.subject import perturbed_subject
from mlxhog.models.registry import load_architecture

TORCH, MLX, BOTH, AGAIN = "torch", "mlx", "mlx+torch", "mlx+torch again"
"""The last is the A/A arm."""
TIE = 0.05  # bits per byte: what two runs of one mix differ by


def mix(kind, count):
    """The option `workers` of an arm."""
    if kind in (TORCH, MLX):
        return workers(count, f"{kind}:cpu")
    return f"{workers(count // 2, 'mlx:cpu')},{workers(count // 2)}"


def measure(findings, chosen):
    """Train by every mix, and compare the backends number by number."""
    bench = Bench(chosen.pick(tiny=TINY, quick=SIZES, full=SIZES), looks=2)
    counts = chosen.pick(tiny=(2,), quick=(2,), full=(2, 8, 16))
    common = {"optimizer": "muon", "schedule": "cosine",
              "tokens": chosen.pick(tiny=12_000, quick=40_000, full=150_000)}  # fmt: skip
    arms = [*((kind, n) for n in counts for kind in (TORCH, MLX, BOTH)), (AGAIN, 2)]
    trainings = take_turns(
        chosen.seeds, arms,
        lambda arm, seed: bench.train(
            f"{arm[0]}, {arm[1]} processes", seed=seed, workers=mix(*arm), **common
        ),
    )  # fmt: skip
    findings.table(
        {"workers": kind, "processes": n,
         "bits per byte": Mean.of(one.end for one in own).spelt(".3f"),
         "tokens per second": round(median(one.tokens_per_s for one in own)),
         "speed": "measured" if enough_cores(n) else "says nothing: more processes than cores",
         "staleness": round(median(one.staleness for one in own), 2)}
        for (kind, n), own in trainings.items()
    )  # fmt: skip
    ends = {arm: [one.end for one in own] for arm, own in trainings.items()}
    findings.document(*(
        counted(
            f"{n} processes: mlx+torch less {alone}, bits per byte",
            Mean.of_differences(ends[BOTH, n], ends[alone, n]), "within", TIE, least=-TIE,
        )
        for n in counts
        for alone in (TORCH, MLX)
    ))  # fmt: skip
    claims = same_numbers(bench.model, trainings)
    findings.claims += claims
    findings.controls.append(Control.of("mlx+torch, 2 processes", ends[BOTH, 2], ends[AGAIN, 2]))
    findings.results |= {
        "settings": {**bench.settings, **common},
        "trainings": {f"{k}, {n}": list(map(asdict, own)) for (k, n), own in trainings.items()},
    }


def same_numbers(model, trainings):
    """Outputs and gradients of both backends and forms of operators, and lost updates."""
    subject = perturbed_subject(
        "the model", load_architecture(model), seed=0, shape=(1, smallest(2, 64)), steps=0
    ).with_arrays()
    rows, _ = compare_all(subject, SIDES, computed(subject))
    lost = max(one.lost_update_rate for own in trainings.values() for one in own)
    return [
        Claim("largest difference of a number, of what float32 rounding allows (mlxhog parity)",
              max(row.tolerance_ratio for row in rows), "<=", 1.0, timing=False),
        Claim("lost updates (stripe locks; no framework adds atomically)", lost, "==", 0,
              timing=False),
    ]  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure, packages=("torch", "mlx"), seeds=(3, 5))
