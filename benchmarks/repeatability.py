"""Do both frameworks' CPU operations repeat bit for bit in fresh processes?

    python benchmarks/repeatability.py --threads 1 2

Every family of language models, each backend, hand-written and plain operators: three steps of SGD
in a process of its own, twice, and the SHA-256 of all losses and gradients. What differs between
two processes with the same number of threads cannot be recorded and replayed. The same with other
numbers of threads says whether a replay needs as many.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys

import numpy as np
from harness.claims import Findings, LoadWatch, finish, own_cpu_s

MODELS = ("tiny", "tiny-7to1", "tiny-v1")
STEPS = 3


def digest(model: str, backend: str, kernels: str, threads: int) -> str:
    """SHA-256 of losses and gradients, in this process."""
    from mlxhog import TrainConfig, backends
    from mlxhog.models.families import param_spec
    from mlxhog.models.spec import initial_value
    from mlxhog.optim.updates import Rows
    from mlxhog.training.plan import make_plan

    config = TrainConfig(
        model=model, workers=backend, kernels=kernels, threads=threads, steps=1, batch_size=4,
        seq_len=128,
    )  # fmt: skip
    plan = make_plan(config)
    slots, floats = plan.layout.slots, plan.layout.n_floats
    computing = backends.create(backend, threads=threads, kernels=plan.kernels[0], cpu_blas="auto")
    computing.bind(plan.model, slots, floats, None)
    for name, spec in param_spec(plan.model).items():
        slot = slots[name]
        value = initial_value(spec, 0).reshape(-1)
        computing.inbox[slot.offset : slot.offset + slot.size] = value
    batches, found = plan.batches(), hashlib.sha256()
    for step in range(STEPS):
        computing.refresh()
        loss, grads = computing.loss_and_grads(batches.at(0, step))
        found.update(np.float64(loss).tobytes())
        for name, grad in sorted(grads.items()):
            slot = slots[name]
            view = computing.inbox[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            values = grad.values if isinstance(grad, Rows) else grad
            found.update(values.tobytes())
            if isinstance(grad, Rows):
                whole = grad.coalesced()
                view[whole.index] -= np.float32(0.1) * whole.values
            else:
                view -= np.float32(0.1) * values
    computing.close()
    return found.hexdigest()


def in_a_process(*words: str) -> str:
    """The same in a process of its own; the last line of its error where it cannot."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"not here: {done.stderr.strip().splitlines()[-1]}"
    return done.stdout.split()[-1]


def main() -> None:
    """Compare processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--one", nargs=4)
    options = parser.parse_args()
    if options.one:
        model, backend, kernels, threads = options.one
        print(digest(model, backend, kernels, int(threads)))
        return
    watch, findings = LoadWatch(), Findings()
    compared = equal = 0
    table = []
    for model in options.models:
        for backend in ("mlx:cpu", "torch:cpu"):
            for kernels in ("native", "reference"):
                by_threads = {}
                for threads in options.threads:
                    words = (model, backend, kernels, str(threads))
                    first, second = in_a_process(*words), in_a_process(*words)
                    if first.startswith("not here"):
                        print(f"{' '.join(words):36} {first}")
                        continue
                    compared += 1
                    equal += first == second
                    by_threads[threads] = first
                    table.append({"what": words, "equal": first == second, "sha256": first})
                    print(f"{' '.join(words):36} {'equal' if first == second else 'DIFFERS'}")
                if len(set(by_threads.values())) > 1:
                    print(f"{model} {backend} {kernels}: other threads give other bits")
    findings.exact("processes that repeat the bits of another one", equal, compared)
    findings.results = {"table": json.loads(json.dumps(table))}
    raise SystemExit(
        finish(
            "repeatability",
            findings.claims,
            others_load=watch.stop(own_cpu_s()),
            results=findings.results,
            packages=("mlxhog", "numpy", "mlx", "torch"),
        )
    )


if __name__ == "__main__":
    main()
