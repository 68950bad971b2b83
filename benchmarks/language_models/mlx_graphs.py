"""A gradient of MLX with the plain operators: its seconds, and what it dispatches, copies, holds.

For programs in processes of their own: with a `commit`, models and backends are those of that
commit (`harness/commits.py`), else today's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from harness.commits import import_from
from harness.machine import ROOT

sys.path.insert(0, str(ROOT))

MLSTM, SLSTM = "mLSTM", "sLSTM"
WIDTHS = {MLSTM: (96, 96, 192), SLSTM: (192,) * 4}
"""Widths of the inputs of a cell's head at 160m; it has 4 heads."""


def step(threads: int, name: str, batch: int, seq: int, commit: str | None) -> Callable[[], None]:
    """The gradient of a worker, in NumPy's arrays."""
    of_commit(commit)
    from mlxhog import arena, backends
    from mlxhog.data.batch import Batch
    from mlxhog.models import families
    from mlxhog.models.registry import load_architecture

    model = load_architecture(name)
    layout = arena.plan(families.param_spec(model), max_workers=1, n_tickets=1)
    worker = backends.create("mlx:cpu", threads=threads, kernels="reference", cpu_blas="auto")
    worker.bind(model, layout.slots, layout.n_floats, None)
    for parameter, value in families.init_params(model, seed=0).items():
        slot = layout.slots[parameter]
        worker.inbox[slot.offset : slot.offset + slot.size] = value.reshape(-1)
    text = np.random.default_rng(1).integers(0, model.vocab_size, (batch, seq + 1), np.int32)
    tokens = Batch(text[:, :-1].copy(), text[:, 1:].copy(), n_bytes=0)

    def gradient() -> None:
        worker.loss_and_grads(tokens)

    return gradient


def of_commit(commit: str | None) -> None:
    """Import models and backends from a commit, if there is one."""
    if commit is not None:
        import_from(commit, "models", "backends")


def gradient(
    name: str, batch: int, seq: int, *, commit: str | None, blocks: int | None = None
) -> tuple[Callable[..., Any], list[Any]]:
    """The loss of a model with its gradients, and arguments of one number each."""
    of_commit(commit)
    import mlx.core as mx

    from mlxhog.models.registry import load_architecture
    from tools import mlx_graph

    mx.set_default_device(mx.cpu)
    model = load_architecture(name)
    if blocks is not None:
        model = replace(model, num_hidden_layers=blocks)  # type: ignore[call-arg]
    return mlx_graph.gradient(model, batch, seq)


def step_nodes(threads: int, name: str, batch: int, seq: int, commit: str | None, gpu: bool) -> int:
    """Dispatched nodes of a compiled gradient; with `gpu` norms count as on one."""
    of_commit(commit)
    import mlx.core as mx

    from tools import mlx_graph

    with mlx_graph.norms_of_a_gpu() if gpu else nullcontext():
        function, arguments = gradient(name, batch, seq, commit=None)
        value, (grads, dx) = mx.compile(function)(*arguments)
    return mlx_graph.dispatched([value, dx, *grads])


def copied(threads: int, name: str, batch: int, seq: int, commit: str | None) -> int:
    """Gradients of a model with one block that NumPy has to copy."""
    import mlx.core as mx

    function, arguments = gradient(name, batch, seq, commit=commit, blocks=1)
    value, (grads, dx) = function(*arguments)
    mx.eval(value, grads, dx)
    return sum(not np.array(grad, copy=False).flags.c_contiguous for grad in (*grads, dx))


def cell(kind: str, seq: int, commit: str | None) -> tuple[Callable[..., Any], list[Any]]:
    """The sum of all outputs of a cell of 160m, and its arguments."""
    of_commit(commit)
    import mlx.core as mx

    from mlxhog.models.ops.kernels import choose

    mx.set_default_device(mx.cpu)
    ops, heads, random = choose("mlx", "reference", "cpu"), 4, np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return mx.array(random.standard_normal(shape, np.float32))

    inputs = [drawn(1, seq, heads, width) for width in WIDTHS[kind]]
    if kind == MLSTM:
        inputs += [drawn(1, seq, heads), drawn(1, seq, heads)]
        return lambda *x: ops.mlstm_cell(*x, chunk_size=64, eps=1e-6)[0].sum(), inputs
    DH = WIDTHS[kind][0]
    inputs += [0.05 * drawn(heads, 4 * DH, DH), drawn(4 * heads * DH)]
    return lambda *x: ops.slstm_cell(*x)[0].sum(), inputs


def cell_nodes(threads: int, kind: str, seq: int, commit: str | None) -> int:
    """Dispatched nodes of a cell's forward pass, not compiled."""
    function, inputs = cell(kind, seq, commit)
    from tools.mlx_graph import dispatched

    return dispatched([function(*inputs)])


def peak_per_position(threads: int, kind: str, seq: int, commit: str | None) -> float:
    """Most bytes that MLX held during a cell's gradient, beyond its inputs, over its positions."""
    import mlx.core as mx

    function, inputs = cell(kind, seq, commit)
    mx.eval(inputs)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(function, argnums=list(range(len(inputs))))(*inputs))
    return (mx.get_peak_memory() - before) / seq
