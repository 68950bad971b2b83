"""The time of a training step by operator: every one alone, plain and native.

Each op of xLSTM Large at d 128 x 4, forward and backward, times its calls in a step. The forms take
turns in one process; the fastest of many counts, since other load only ever adds.
"""

import time

import numpy as np
from harness.interleaved import Program, once
from language_models.ours import large
from language_models.sizes import SMALL

KINDS = ("reference", "native")


def ops(report, thread_counts):
    """Milliseconds per step of every op, by both frameworks."""
    for threads in thread_counts:
        tables = {
            framework: once(
                Program(
                    "language_models.operators",
                    "table",
                    {"framework": framework, "repeats": 4 * report.turns},
                ),
                threads=threads,
            )
            for framework in ("torch", "mlx")
        }
        row = f"operators, {SMALL.name}, threads {threads}"
        columns = [f"{framework} {kind}" for framework in tables for kind in KINDS]
        print(f"\n{row}: ms in a step\n{'':22}" + "".join(f"{name:>17}" for name in columns))
        for name in tables["torch"]:
            ms = [value for table in tables.values() for value in table[name]]
            print(f"{name:22}" + "".join(f"{value:17.2f}" for value in ms))
        report.results[row] = {
            name: dict(zip(columns, tables["torch"][name] + tables["mlx"][name], strict=True))
            for name in tables["torch"]
        }


def table(framework, repeats, threads):
    """Milliseconds of every op in a step, one for each of `KINDS`; in a process of its own."""
    from mlxhog.backends.mlx import preload_blas
    from mlxhog.models.ops.kernels import choose

    if framework == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        preload_blas(threads)
        import mlx.core as mx

        from mlxhog.models.ops.native.adapter_mlx import set_threads

        mx.set_default_device(mx.cpu)
        set_threads(threads)
    timed = torch_op if framework == "torch" else mlx_op
    times = {}
    for name, (calls, call, inputs) in op_calls().items():
        steps = [timed(choose(framework, kind, "cpu"), call, inputs) for kind in KINDS]
        times[name] = [1e3 * calls * seconds for seconds in fastest(steps, repeats)]
    return times


def op_calls():
    """Every op at the model's sizes: calls per step, the call, its differentiable inputs."""
    cfg, B, S, NH = large(SMALL), SMALL.batch, SMALL.seq, SMALL.heads
    N, d, U, V = B * S, SMALL.d, cfg.ffn_dim, SMALL.vocab
    DK, DV = cfg.qk_dim // cfg.num_heads, cfg.v_dim // cfg.num_heads
    r = np.random.default_rng(0)

    def draw(*shape):
        return r.standard_normal(shape).astype(np.float32)

    def maps(width, *outs):
        return {"x": draw(N, width)} | {f"w{j}": draw(o, width) for j, o in enumerate(outs)}

    def linears(ops, a):
        return ops.linears(a["x"], [w for name, w in a.items() if name != "x"])

    cell = {"q": draw(B, S, NH, DK), "k": draw(B, S, NH, DK), "v": draw(B, S, NH, DV)}
    gates = {"i": draw(B, S, NH), "f": 3 + draw(B, S, NH)}
    labels = r.integers(0, V, N).astype(np.int32)
    blocks = cfg.num_hidden_layers
    return {
        "linears q k v o i f": (blocks, linears, maps(d, d // 2, d // 2, d, d, NH, NH)),
        "linears gate up": (blocks, linears, maps(d, U, U)),
        "linears down": (blocks, linears, maps(U, d)),
        "linears out": (blocks, linears, maps(d, d)),
        "mlstm_cell": (
            blocks,
            lambda ops, a: ops.mlstm_cell(**a, chunk_size=cfg.chunk_size, eps=1e-6)[:1],
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
            {"h": draw(B, S, NH, DV), "o": draw(B, S, d), "w": draw(d)},
        ),
        "soft_cap": (2 * blocks, lambda ops, a: (ops.soft_cap(a["x"], 15.0),), {"x": draw(N, NH)}),
        "linear_cross_entropy": (
            1,
            lambda ops, a: (
                ops.linear_cross_entropy(**a, labels=labels_of(ops, labels), cap=30.0)[0],
            ),
            {"x": draw(N, d), "w": draw(V, d)},
        ),
    }


def labels_of(ops, labels):
    """Labels as an array of the framework whose ops these are."""
    if ops.xp.framework == "torch":
        import torch

        return torch.from_numpy(labels).long()
    import mlx.core as mx

    return mx.array(labels)


def torch_op(ops, call, inputs):
    """One op forward and backward, from gradients of one for its outputs."""
    import torch

    arrays = {name: torch.tensor(value).requires_grad_() for name, value in inputs.items()}
    ones = [torch.ones_like(out) for out in call(ops, arrays)]
    leaves = list(arrays.values())

    def run():
        torch.autograd.grad(call(ops, arrays), leaves, ones)

    return run


def mlx_op(ops, call, inputs):
    """As `torch_op`."""
    import mlx.core as mx

    names, arrays = list(inputs), [mx.array(value) for value in inputs.values()]

    def forward(*values):
        return list(call(ops, dict(zip(names, values, strict=True))))

    ones = [mx.ones_like(out) for out in forward(*arrays)]
    mx.eval(ones)
    return lambda: mx.eval(mx.vjp(forward, arrays, ones))


def fastest(steps, repeats):
    """Seconds of the fastest run of each, taking turns."""
    best = [float("inf")] * len(steps)
    for _ in range(repeats):
        for j, step in enumerate(steps):
            began = time.perf_counter()
            step()
            best[j] = min(best[j], time.perf_counter() - began)
    return best
