"""How fast is one training step of one worker, and where does its time go?

The model of every comparison (d 128, 4 blocks, 4 heads, bytes; B 8, S 256), forward and backward,
in PyTorch and in MLX, with the framework's own ops and with the native ones, one thread each unless
`--threads` says otherwise. Steps of the four take turns; the fastest of many counts, since other
load only ever adds. `--ops` times each op alone, forward and backward, times its calls per step.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import _harness
import numpy as np

from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import EMBEDDING, XLSTMLargeConfig

B, S = 8, 256
CONFIG = XLSTMLargeConfig(
    vocab_size=320, hidden_size=128, num_hidden_layers=4, num_heads=4, chunk_size=64
)
KERNELS = ("reference", "native")
PEER_TOKENS_PER_S = 10_000  # xlstm 2.0.6 with its native kernels, one thread, quiet machine

Step = Callable[[], None]


def op_calls() -> dict[str, tuple[int, Callable[[Any, Any], Any], dict[str, np.ndarray]]]:
    """Every op at the model's sizes: calls per step, the call, its differentiable inputs."""
    N, d, U, V, NH = B * S, 128, 384, CONFIG.vocab_size, CONFIG.num_heads
    r = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return r.standard_normal(shape).astype(np.float32)

    def maps(width: int, *outs: int) -> dict[str, np.ndarray]:
        return {"x": draw(N, width)} | {f"w{j}": draw(o, width) for j, o in enumerate(outs)}

    def linears(ops: Any, a: Any) -> Any:
        return ops.linears(a["x"], [w for name, w in a.items() if name != "x"])

    cell = {"q": draw(B, S, NH, 16), "k": draw(B, S, NH, 16), "v": draw(B, S, NH, 32)}
    gates = {"i": draw(B, S, NH), "f": 3 + draw(B, S, NH)}
    labels = r.integers(0, V, N).astype(np.int32)
    blocks = CONFIG.num_hidden_layers
    return {
        "linears q k v o i f": (blocks, linears, maps(d, 64, 64, d, d, NH, NH)),
        "linears gate up": (blocks, linears, maps(d, U, U)),
        "linears down": (blocks, linears, maps(U, d)),
        "linears out": (blocks, linears, maps(d, d)),
        "linears head": (1, linears, maps(d, V)),
        "mlstm_cell": (
            blocks,
            lambda ops, a: ops.mlstm_cell(**a, chunk_size=CONFIG.chunk_size, eps=1e-6)[:1],
            cell | gates,
        ),
        "swiglu": (
            blocks,
            lambda ops, a: (ops.swiglu(**a),),
            {"gate": draw(N, U), "up": draw(N, U)},
        ),
        "rms_norm": (
            2 * blocks + 1,
            lambda ops, a: (ops.rms_norm(**a, eps=1e-6),),
            {"x": draw(N, d), "w": draw(d)},
        ),
        "head_norm_gate": (
            blocks,
            lambda ops, a: (ops.head_norm_gate(**a, eps=1e-6),),
            {"h": draw(B, S, NH, 32), "o": draw(B, S, d), "w": draw(d)},
        ),
        "soft_cap": (2 * blocks, lambda ops, a: (ops.soft_cap(a["x"], 15.0),), {"x": draw(N, NH)}),
        "capped_cross_entropy": (
            1,
            lambda ops, a: (ops.capped_cross_entropy(a["x"], labels_of(ops, labels), 30.0)[0],),
            {"x": draw(N, V)},
        ),
    }


def labels_of(ops: Any, labels: np.ndarray) -> Any:
    """Labels as an array of the framework whose ops these are."""
    if "torch" in ops.__name__:
        import torch

        return torch.from_numpy(labels).long()
    import mlx.core as mx

    return mx.array(labels)


def torch_steps(threads: int) -> dict[str, Step]:
    """One whole step for each kind of kernels."""
    import torch

    from mlxhog.models import lm_torch as twin

    torch.set_num_threads(threads)
    start, tokens, labels = start_values()
    params = {name: torch.tensor(value).requires_grad_() for name, value in start.items()}
    leaves = [value for name, value in params.items() if name != EMBEDDING]

    def step(kernels: str) -> None:
        x = twin.embed(CONFIG, params, torch.from_numpy(tokens)).detach().requires_grad_()
        loss = twin.loss_from_embedding(
            CONFIG, params, x, torch.from_numpy(labels), kernels=kernels
        )
        torch.autograd.grad(loss, [*leaves, x])

    return {kernels: functools.partial(step, kernels) for kernels in KERNELS}


def mlx_steps() -> dict[str, Step]:
    """As `torch_steps`."""
    import mlx.core as mx

    from mlxhog.models import lm_mlx as twin

    mx.set_default_device(mx.cpu)
    start, tokens, labels = start_values()
    embedding = {EMBEDDING: mx.array(start.pop(EMBEDDING))}
    params = {name: mx.array(value) for name, value in start.items()}

    def step(kernels: str) -> None:
        def loss_of(p: Any, x: Any) -> Any:
            return twin.loss_from_embedding(CONFIG, p, x, mx.array(labels), kernels=kernels)

        x = twin.embed(CONFIG, embedding, mx.array(tokens))
        mx.eval(mx.value_and_grad(loss_of, argnums=(0, 1))(params, x))

    return {kernels: functools.partial(step, kernels) for kernels in KERNELS}


def start_values() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Initial parameters, tokens and labels (B, S)."""
    text = np.random.default_rng(1).integers(0, 256, (B, S + 1))
    return dict(init_params(CONFIG, seed=0)), text[:, :-1].copy(), text[:, 1:].copy()


def torch_op(ops: Any, call: Callable[[Any, Any], Any], inputs: dict[str, np.ndarray]) -> Step:
    """One op forward and backward, from gradients of one for its outputs."""
    import torch

    arrays = {name: torch.tensor(value).requires_grad_() for name, value in inputs.items()}
    ones = [torch.ones_like(out) for out in call(ops, arrays)]
    wanted = list(arrays.values())

    def run() -> None:
        torch.autograd.grad(call(ops, arrays), wanted, ones)

    return run


def mlx_op(ops: Any, call: Callable[[Any, Any], Any], inputs: dict[str, np.ndarray]) -> Step:
    """As `torch_op`."""
    import mlx.core as mx

    names, arrays = list(inputs), [mx.array(value) for value in inputs.values()]

    def forward(*values: Any) -> list[Any]:
        return list(call(ops, dict(zip(names, values, strict=True))))

    ones = [mx.ones_like(out) for out in forward(*arrays)]
    mx.eval(ones)
    return lambda: mx.eval(mx.vjp(forward, arrays, ones))


def fastest(steps: Sequence[Step], repeats: int) -> list[float]:
    """Seconds of the fastest run of each, taking turns."""
    best = [float("inf")] * len(steps)
    for _ in range(repeats):
        for j, step in enumerate(steps):
            began = time.perf_counter()
            step()
            best[j] = min(best[j], time.perf_counter() - began)
    return best


def main() -> int:
    """Measure, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="8 repeats, whole steps only")
    parser.add_argument("--ops", action="store_true", help="also time each op alone")
    options = parser.parse_args()
    repeats = 8 if options.quick else options.repeats
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))

    from mlxhog.backends import blas

    blas.preload(options.threads)
    from mlxhog.models.ops import kernels, native_mlx

    native_mlx.set_threads(options.threads)
    watch, began = _harness.LoadWatch(), time.process_time()
    steps = {
        f"{framework} {kind}": step
        for framework, found in (("torch", torch_steps(options.threads)), ("mlx", mlx_steps()))
        for kind, step in found.items()
    }
    seconds = dict(zip(steps, fastest(list(steps.values()), repeats), strict=True))
    tokens_per_s = {name: B * S / s for name, s in seconds.items()}
    for name, value in seconds.items():
        print(f"{name:16s} {1e3 * value:8.1f} ms per step {tokens_per_s[name]:10.0f} tokens/s")

    op_ms: dict[str, dict[str, float]] = {}
    if options.ops and not options.quick:
        print(f"\n{'ms per step':22s}" + "".join(f"{name:>17s}" for name in steps))
        for name, (calls, call, inputs) in op_calls().items():
            ops = {key: kernels.choose(*key.split(), device="cpu") for key in steps}
            made = [
                (torch_op if key.startswith("torch") else mlx_op)(ops[key], call, inputs)
                for key in steps
            ]
            times = [1e3 * calls * s for s in fastest(made, repeats)]
            op_ms[name] = dict(zip(steps, times, strict=True))
            print(f"{name:22s}" + "".join(f"{t:17.2f}" for t in times))

    others = watch.stop(time.process_time() - began)
    claims = [
        _harness.Claim(
            f"{framework} native tokens/s over the xlstm package's {PEER_TOKENS_PER_S}",
            tokens_per_s[f"{framework} native"] / PEER_TOKENS_PER_S,
            ">=",
            1.2,
        )
        for framework in ("torch", "mlx")
    ]
    return _harness.finish(
        "ops_step",
        claims,
        others_load=others,
        results={"threads": options.threads, "tokens_per_s": tokens_per_s, "op_ms": op_ms},
        packages=("mlxhog", "torch", "mlx", "numpy"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
