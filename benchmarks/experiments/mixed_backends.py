"""MLX beside PyTorch on one set of parameters: convergence, and whether both compute the same.

python benchmarks/experiments/mixed_backends.py          two workers
python benchmarks/experiments/mixed_backends.py --full   and 4 + 4, 8 + 8 processes
"""

from statistics import median

import numpy as np
from experiment.figures import intervals, new_panel
from experiment.language import Bench, Training, enough_cores, setup, workers
from experiment.record import Compared, Experiment, Outcome, run
from experiment.runs import Runs
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.interleaved import take_turns
from language_models.decoding import load_backend

from mlxhog.data.batches import Batches
from mlxhog.data.prepare import prepare
from mlxhog.models.families import param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.optim.updates import Rows

ABOUT = Experiment(
    name="mixed_backends",
    title="MLX and PyTorch workers together against one backend alone",
    source="document 001, Test 2",
    about=(
        "Lock-free workers on the same parameters, Muon with its defaults: all of PyTorch, all of "
        "MLX, half of each; 2, 8 and 16 processes, as many as the document asks for. Where they "
        "are more than the cores, this shows whether they work and converge, and no speed. Beside "
        "it, both backends compute loss and gradient of the same batches at the same parameters."
    ),
    packages=("torch", "mlx"),
    full_seeds=3,
)
TORCH, MLX, BOTH, AGAIN = "torch", "mlx", "mlx+torch", "mlx+torch again"
"""The last is the A/A arm."""
TIE = 0.05  # bits per byte: what two runs of one mix differ by
PARITY = 1e-3  # of losses and gradients, relative: float32 sums in another order


def mix(kind, count):
    """The option `workers` of an arm."""
    if kind in (TORCH, MLX):
        return workers(count, f"{kind}:cpu")
    return f"{workers(count // 2, 'mlx:cpu')},{workers(count // 2)}"


def arms(scale):
    """Every mix with every number of processes."""
    counts = scale.pick(tiny=(2,), quick=(2,), full=(2, 8, 16))
    kinds = [(kind, count) for count in counts for kind in (TORCH, MLX, BOTH)]
    return [*kinds, (AGAIN, 2)]


def result(scale):
    """Train by every mix, and compare the backends number by number."""
    bench, runs = Bench(setup(scale)), Runs(ABOUT, scale)
    tokens = scale.pick(tiny=12_000, quick=40_000, full=150_000)

    def train(arm, seed):
        def trained():
            title = f"{arm[0]}, {arm[1]} processes"
            options = {"optimizer": "muon", "schedule": "cosine", "workers": mix(*arm)}
            return bench.train(title, seed=seed, tokens=tokens, **options).to_json()

        return Training.of_json(runs.of({"arm": arm, "seed": seed, "tokens": tokens}, trained))

    trainings = take_turns(scale.seeds, arms(scale), train)
    by_kernels = {
        kernels: _parity(bench, kernels, batches=2 if scale.quick else 8)
        for kernels in ("auto", "reference")
    }
    ends = {arm: [one.end for one in own] for arm, own in trainings.items()}
    claims = _same_numbers(by_kernels, trainings)
    return Outcome(
        compared=[
            Compared.of("same convergence as homogeneous", *_same_convergence(ends)),
            Compared.of("outputs match within epsilon", *claims),
        ],
        table=[_row(arm, own) for arm, own in trainings.items()],
        claims=claims,
        settings={
            **bench.setup.to_json(),
            "optimizer": "muon",
            "schedule": "cosine",
            "tokens": tokens,
        },
        results={
            "parity": by_kernels,
            "ends": [{"mix": kind, "processes": n, "bits": own} for (kind, n), own in ends.items()],
        },
        twins=[Twin.of("mlx+torch, 2 processes", ends[BOTH, 2], ends[AGAIN, 2])],
        others_load=runs.others_load,
    )


def _row(arm, own):
    kind, count = arm
    return {
        "workers": kind,
        "processes": count,
        "bits per byte": Mean.of(one.end for one in own).spelt(".3f"),
        "tokens per second": round(median(one.tokens_per_s for one in own)),
        "speed": "measured" if enough_cores(count) else "says nothing: more processes than cores",
        "staleness": round(median(one.staleness for one in own), 2),
        "lost updates": max(one.lost_update_rate for one in own),
    }


def _same_convergence(ends):
    """The mix ends neither better nor worse than either backend alone."""
    return [
        Claim.of(
            f"{count} processes: mlx+torch less {alone}, bits per byte",
            Mean.of_differences(ends[BOTH, count], ends[alone, count]),
            "within",
            TIE,
            least=-TIE,
            timing=False,
        )
        for count in dict.fromkeys(count for _, count in ends)
        for alone in (TORCH, MLX)
    ]


def _same_numbers(by_kernels, trainings):
    apart = {what: max(one[what] for one in by_kernels.values()) for what in ("loss", "gradient")}
    lost = max(one.lost_update_rate for own in trainings.values() for one in own)
    return [
        Claim("relative difference of losses", apart["loss"], "<=", PARITY, timing=False),
        Claim("... of gradients", apart["gradient"], "<=", PARITY, timing=False),
        Claim(
            "lost updates (stripe locks; no framework adds atomically)", lost, "==", 0, timing=False
        ),
    ]


def draw(outcome):
    """Bits per byte of every seed, by mix and number of processes."""
    figure, axes = new_panel(x="held-out bits per byte", y="", heading="After the same text")
    shown = outcome.results["ends"]
    intervals(axes, {f"{one['mix']}, {one['processes']}": one["bits"] for one in shown})
    return figure


def _parity(bench, kernels, *, batches):
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


def _computed(backend, kernels, model_name, batches):
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


def _flat(grads, shapes):
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
    raise SystemExit(run(ABOUT, result, draw))
