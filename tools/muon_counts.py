"""What Muon costs beside a gradient on a Mac's GPU: counted operations over rates, not measured.

    python -m tools.muon_counts

A step's parts follow one another: the gradient on the GPU, the element by element part of Muon on
the CPU, and the orthogonalisation, on the CPU by our own product or by Accelerate's, or on the GPU.
Operations are counted from the shapes of the matrices. The rates are others' (docs/apple.md has
their sources): a GPU that takes 0.03 s for the gradient of `10m` and 1,024 tokens, one performance
core of an M1 with NEON, the lower of two measurements of Accelerate, and the memory of an M1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim.muon import ORTHOGONALIZATIONS, operations
from tools.roofline import BANDWIDTH_GB_S

MODELS = ("10m", "30m", "60m", "160m")
TOKENS = 4 * 256
"""Of a gradient: the default batch and length."""
GRADIENT_S = 0.03
"""Seconds of a gradient of `10m` on the GPU, from which its rate follows."""
CPU_GFLOP_S: Mapping[str, float] = {"our own product": 102, "Accelerate": 700}

HIDDEN_BYTES = 48
"""Memory traffic of the CPU per hidden element if the GPU orthogonalises: g, m, m', x; x, x again
for its norm, and its copy; that copy, and MLX's; u, w, w'."""
OTHER_BYTES = 28
"""The same for AdamW's elements: g, w, m, v, w', m', v'."""


@cache
def shapes(model: str) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The shapes of the hidden matrices of a model, and the number of its other elements."""
    config = load_architecture(model)
    spec, hidden = families.param_spec(config), families.hidden_matrices(config)
    matrices = tuple(spec[name].shape for name in sorted(hidden))
    return matrices, families.param_count(config) - sum(r * c for r, c in matrices)


def muon_gflop(model: str, *, whole: bool = False) -> float:
    """Operations of one orthogonalisation of all hidden matrices, in 10^9.

    Args:
        model: name of the architecture.
        whole: compute symmetric products whole, as a worker's device does.
    """
    steps = len(ORTHOGONALIZATIONS["polar3"])
    return sum(operations(shape, steps, whole=whole) for shape in shapes(model)[0]) / 1e9


def gradient_gflop(model: str, tokens: int = TOKENS) -> float:
    """Operations of a gradient's products with hidden matrices and head, in 10^9; no cells."""
    config = load_architecture(model)
    matrices, _ = shapes(model)
    head = config.vocab_size * config.hidden_size
    return 6 * tokens * (sum(r * c for r, c in matrices) + head) / 1e9


def gpu_gflop_s() -> float:
    """The rate of the GPU."""
    return gradient_gflop("10m") / GRADIENT_S


def cpu_share(model: str, product: str | None) -> float:
    """Muon's share of a step that the CPU computes and the GPU waits for.

    Args:
        model: name of the architecture.
        product: that orthogonalises, a key of `CPU_GFLOP_S`; None is the GPU's.
    """
    matrices, others = shapes(model)
    hidden = sum(r * c for r, c in matrices)
    cpu_s = (HIDDEN_BYTES * hidden + OTHER_BYTES * others) / (BANDWIDTH_GB_S["M1"] * 1e9)
    gpu_s = gradient_gflop(model) / gpu_gflop_s()
    if product is None:
        gpu_s += muon_gflop(model, whole=True) / gpu_gflop_s()
    else:
        cpu_s += muon_gflop(model) / CPU_GFLOP_S[product]
    return cpu_s / (cpu_s + gpu_s)


def table() -> str:
    """The counts and shares as a Markdown table, a row per model."""
    products = (*CPU_GFLOP_S, None)
    head = [
        "model", "gradient, GFLOP", "Muon on a CPU, GFLOP", "on a GPU, GFLOP",
        *(f"CPU's share with {product or 'the GPU'}" for product in products),
    ]  # fmt: skip
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for model in MODELS:
        counts = gradient_gflop(model), muon_gflop(model), muon_gflop(model, whole=True)
        shares = (f"{100 * cpu_share(model, product):.0f} %" for product in products)
        rows.append([f"`{model}`", *(f"{gflop:.0f}" for gflop in counts), *shares])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
