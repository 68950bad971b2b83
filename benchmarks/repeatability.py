"""Do trainings, and both frameworks' CPU operations, repeat bit for bit in fresh processes?

    python benchmarks/repeatability.py --threads 1 2

Every family of language models, each backend, hand-written and plain operators: three steps of SGD
in one process and in another, and the SHA-256 of all losses and gradients. What differs between
two processes with the same number of threads cannot be recorded and replayed. The same with other
numbers of threads says whether a replay needs as many. Then whole trainings, one MLX and one
PyTorch worker, by each strategy that promises to repeat: SHA-256 of the parameters at their end.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
from harness.claims import Findings, flags, measured
from harness.machine import smallest
from training.recording import record

from mlxhog.errors import MlxhogError

MODELS = ("tiny", "7to1-tiny", "lfm2-tiny", "mad-7to1-v1", "mad-attention", "mad-striped")
KERNELS = ("native", "reference")
STEPS = 3
STRATEGIES = ("serial", "sync", "round_robin", "avg_runs")
OPTIMIZERS = ("muon", "adamw")


def digest(model: str, backend: str, kernels: str, threads: int) -> str:
    """SHA-256 of losses and gradients, in this process."""
    from mlxhog import TrainConfig, backends
    from mlxhog.models.families import param_spec
    from mlxhog.models.spec import initial_value
    from mlxhog.optim.updates import Rows
    from mlxhog.training.plan import make_plan

    config = TrainConfig(
        model=model, workers=backend, kernels=kernels, threads=threads, steps=1, batch_size=4,
        seq_len=128, tokenizer="bytes",
    )  # fmt: skip
    plan = make_plan(config)
    slots, floats = plan.layout.slots, plan.layout.n_floats
    computing = backends.create(backend, threads=threads, kernels=plan.kernels[0], cpu_blas="auto")
    computing.bind(plan.model, slots, floats, None)
    for name, spec in param_spec(plan.model).items():
        slot = slots[name]
        value = initial_value(spec, 0).reshape(-1)
        computing.inbox[slot.offset : slot.offset + slot.size] = value
    batches, sha256 = plan.batches(), hashlib.sha256()
    for step in range(STEPS):
        computing.refresh()
        loss, grads = computing.loss_and_grads(batches.at(0, step))
        sha256.update(np.float64(loss).tobytes())
        for name, grad in sorted(grads.items()):
            slot = slots[name]
            view = computing.inbox[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            values = grad.values if isinstance(grad, Rows) else grad
            sha256.update(values.tobytes())
            if isinstance(grad, Rows):
                whole = grad.coalesced()
                view[whole.index] -= np.float32(0.1) * whole.values
            else:
                view -= np.float32(0.1) * values
    computing.close()
    return sha256.hexdigest()


def all_digests(backend: str, threads: int, models: list[str]) -> dict[str, str]:
    """Of every model and kind of operators, in this process; why not, where there are none."""
    digests = {}
    for model in models:
        for kernels in KERNELS:
            try:
                digests[f"{model} {kernels}"] = digest(model, backend, kernels, threads)
            except MlxhogError as error:
                digests[f"{model} {kernels}"] = f"not here: {error}"
    return digests


def in_a_process(backend: str, threads: int, models: list[str]) -> dict[str, str]:
    """The same in a process of its own."""
    words = ["--one", backend, str(threads), "--models", *models]
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=True
    )
    digests: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return digests


def trained(strategy: str, optimizer: str, seed: int) -> str:
    """SHA-256 of the parameters at the end of a training."""
    workers = "torch:cpu" if strategy == "serial" else "mlx:cpu,torch:cpu"
    run = record(
        keep_params=True, strategy=strategy, optimizer=optimizer, workers=workers, threads=1,
        seed=seed, steps=60, batch_size=2, seq_len=128,
    )  # fmt: skip
    params = run.points[-1].params
    assert params is not None
    return hashlib.sha256(params.tobytes()).hexdigest()


def compare_trainings(findings: Findings) -> None:
    """Train each strategy twice with the same seed; and once with another, which has to differ."""
    arms = [(strategy, optimizer) for strategy in STRATEGIES for optimizer in OPTIMIZERS]
    arms = smallest(arms[:1], arms)
    equal = other = 0
    for arm in arms:
        first, second, third = (trained(*arm, seed) for seed in (1, 1, 2))
        equal, other = equal + (first == second), other + (first != third)
        verdict = "equal" if first == second else "DIFFERS"
        print(f"trained by {', '.join(arm)}: {verdict}", flush=True)
    findings.exact("trainings that a second run repeats bit for bit", equal, len(arms), n=len(arms))
    findings.exact("trainings with other bits by another seed", other, len(arms), n=len(arms))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Compare processes."""
    compare_trainings(findings)
    if chosen.tiny:
        chosen.threads, chosen.models = chosen.threads[:1], chosen.models[:1]
    compared = equal = 0
    others: set[str] = set()
    for backend in ("mlx:cpu", "torch:cpu"):
        before: dict[str, str] = {}
        for threads in chosen.threads:
            first, second = (in_a_process(backend, threads, chosen.models) for _ in range(2))
            for what, sha256 in first.items():
                if sha256.startswith("not here"):
                    print(f"{backend:9} {threads} threads, {what}: {sha256}", flush=True)
                    continue
                compared += 1
                equal += sha256 == second[what]
                verdict = "equal" if sha256 == second[what] else "DIFFERS"
                print(f"{backend:9} {threads} threads, {what}: {verdict}", flush=True)
                if before.setdefault(what, sha256) != sha256:
                    others.add(f"{backend} {what}")
    findings.exact(
        "computations that a second process repeats bit for bit", equal, compared, n=compared
    )
    findings.results = {"other_bits_with_other_threads": sorted(others)}
    print(f"other bits with other numbers of threads: {', '.join(sorted(others)) or 'none'}")


def main() -> int:
    """Compare, or print the digests of this process."""
    parser = flags(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--one", nargs=2, metavar=("BACKEND", "THREADS"))
    chosen = parser.parse_args()
    if chosen.one:
        backend, threads = chosen.one
        print(json.dumps(all_digests(backend, int(threads), chosen.models)))
        return 0
    return measured("repeatability", chosen, measure, packages=("mlx", "torch"))


if __name__ == "__main__":
    raise SystemExit(main())
