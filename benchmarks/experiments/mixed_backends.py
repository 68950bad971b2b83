"""MLX beside PyTorch on one set of parameters: convergence, and whether both compute the same."""

from __future__ import annotations

from statistics import median

import numpy as np
from experiment.language import Bench, Training, loss_figure, setup, trainings_json, workers
from experiment.record import Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim
from harness.interleaved import take_turns
from language_models.decoding import load_backend
from schemes import settings

from mlxhog.backends.backend import Float32, Grads
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Batches
from mlxhog.data.prepare import prepare
from mlxhog.models.families import param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.optim.updates import Rows

BUDGET = {"order": 90, "quick_s": 60, "full_s": 1800}
ABOUT = Experiment(
    name="mixed_backends",
    title="MLX and PyTorch workers together against one backend alone",
    source="document 001, Test 2",
    about=(
        "Two lock-free workers on the same parameters: two of PyTorch, two of MLX, one of each, "
        "all at the same step size on the same text. Beside it, both backends compute loss and "
        "gradient of the same batches at the same parameters."
    ),
    packages=("torch", "mlx"),
)
MIXES = {
    "torch+torch": workers(2),
    "mlx+mlx": workers(2, "mlx:cpu"),
    "mlx+torch": "mlx:cpu,torch:cpu",
}
TIE = 0.05  # bits per byte: what two runs of one mix differ by
PARITY = 1e-3  # of losses and gradients, relative: float32 sums in another order


def result(scale: Scale) -> Outcome:
    """Train by every mix, and compare the backends number by number."""
    chosen, bench = settings(scale), Bench(setup(scale))
    lr, tokens = chosen["lr"]["hogwild, predicted read"], chosen["tokens"]

    def train(name: str, seed: int) -> Training:
        return bench.train(name, seed=seed, tokens=tokens, lr=lr, workers=MIXES[name])

    trainings = take_turns(scale.seeds, MIXES, train)
    by_kernels = {
        kernels: _parity(bench, kernels, batches=2 if scale.quick else 8)
        for kernels in ("auto", "reference")
    }
    parity = {
        what: max(apart[what] for apart in by_kernels.values()) for what in ("loss", "gradient")
    }
    ends = {name: median(one.end for one in v) for name, v in trainings.items()}
    lost = max(one.lost_update_rate for v in trainings.values() for one in v)
    alone = [ends["torch+torch"], ends["mlx+mlx"]]
    apart = ends["mlx+torch"] - max(alone)
    return Outcome(
        compared=[
            Compared(
                "same convergence as homogeneous",
                f"after the same text: mlx+torch {ends['mlx+torch']:.3f}, torch+torch "
                f"{ends['torch+torch']:.3f}, mlx+mlx {ends['mlx+mlx']:.3f} bits per byte.",
                told(apart <= TIE),
                timing=False,
            ),
            Compared(
                "outputs match within epsilon; validates atomic ops",
                f"relative difference of losses at most {parity['loss']:.1e}, of gradients "
                f"{parity['gradient']:.1e}; with native kernels "
                f"{by_kernels['auto']['gradient']:.1e}. Lost updates {lost:.1e}: none is lost "
                "because of stripe locks; neither framework adds atomically by itself.",
                told(max(parity.values()) <= PARITY and lost == 0),
                timing=False,
            ),
        ],
        table=[
            {
                "workers": name,
                "bits per byte": ends[name],
                "tokens per second": round(median(one.tokens_per_s for one in v)),
                "staleness": round(median(one.staleness for one in v), 2),
                "lost updates": max(one.lost_update_rate for one in v),
            }
            for name, v in trainings.items()
        ],
        claims=[
            Claim("relative difference of losses", parity["loss"], "<=", PARITY, timing=False),
            Claim("... of gradients", parity["gradient"], "<=", PARITY, timing=False),
            Claim("lost updates", lost, "==", 0, timing=False),
        ],
        settings={**bench.setup.to_json(), "lr": lr, "tokens": tokens},
        results={"parity": by_kernels, "trainings": trainings_json(trainings)},
    )


def _parity(bench: Bench, kernels: str, *, batches: int) -> dict[str, float]:
    """Largest relative difference of losses and gradients, MLX against PyTorch."""
    common = bench.setup
    options = common.options()
    data = prepare("sotu")
    text = Batches.open(data.train, seq_len=common.seq_len, batch_size=common.batch, seed=0)
    gradients = [
        _computed(backend, kernels, options["model"], [text.at(0, k) for k in range(batches)])
        for backend in ("torch:cpu", "mlx:cpu")
    ]
    (losses, grads), (others, other_grads) = gradients
    return {
        "loss": max(abs(a - b) / abs(a) for a, b in zip(losses, others, strict=True)),
        "gradient": max(
            float(np.linalg.norm(a - b) / np.linalg.norm(a))
            for a, b in zip(grads, other_grads, strict=True)
        ),
    }


def _computed(
    backend: str, kernels: str, model_name: str, batches: list[Batch]
) -> tuple[list[float], list[Float32]]:
    """Loss and whole gradient of each batch at the initial parameters."""
    model = load_architecture(model_name)
    worker = load_backend(backend, model, threads=2, kernels=kernels)
    shapes = {name: spec.shape for name, spec in sorted(param_spec(model).items())}
    losses, flat = [], []
    for batch in batches:
        loss, grads = worker.loss_and_grads(batch)
        losses.append(loss)
        flat.append(_flat(grads, shapes))
    worker.close()
    return losses, flat


def _flat(grads: Grads, shapes: dict[str, tuple[int, ...]]) -> Float32:
    parts = []
    for name, shape in shapes.items():
        grad = grads[name]
        if isinstance(grad, Rows):
            dense = np.zeros(shape, np.float32)
            np.add.at(dense, grad.index, grad.values)
            grad = dense
        parts.append(np.asarray(grad).ravel().copy())
    return np.concatenate(parts)


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, loss_figure))
