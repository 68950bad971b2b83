"""The layers around the cells as native CPU kernels behind torch autograd; float32 only.

`kernels.py` says what each promises, `reference/ops_torch.py` and `conv_torch.py` are the plain
forms, `metal/native/ops` holds the kernels. They use `torch.get_num_threads()` threads.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.native.call_torch import FAST_GEMM, array, threads
from mlxhog.models.ops.reference import ops_torch as reference_torch


def layer_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Move x to mean 0 and variance 1 over the last axis, then scale by w."""
    return cast(Tensor, _apply(_LayerNorm, x, w, eps))


def head_norm(h: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return w * LayerNorm(h), normalised over DH within each head and flat, (B, S, NH * DH)."""
    return cast(Tensor, _apply(_LayerNorm, h, w, eps)).flatten(-2)


def block_diagonal(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if not FAST_GEMM and not all(ops.is_small_block(*w.shape[1:]) for w in weights):
        return reference_torch.block_diagonal(x, weights, biases)
    if biases is None:
        biases = (None,) * len(weights)
    return cast(tuple[Tensor, ...], _apply(_BlockDiagonal, x, len(weights), *weights, *biases))


def causal_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    if starts is not None:
        starts = starts.to(torch.uint8)
    return cast(tuple[Tensor, Tensor], _apply(_CausalConv, x, w, b, state, starts, silu))


def activate(x: Tensor, activation: str) -> Tensor:
    """Return act(x)."""
    return cast(Tensor, _apply(_Activate, x, known(activation)))


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return act(gate) * up."""
    return cast(Tensor, _apply(_Glu, gate, up, known(activation)))


def head_norm_skip_gate(
    h: Tensor, c: Tensor, z: Tensor, w: Tensor, skip: Tensor, eps: float
) -> Tensor:
    """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head."""
    return cast(Tensor, _apply(_HeadNormSkipGate, h, c, z, w, skip, eps))


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        ops.layer_norm(array(x), array(w), array(out), eps=eps, threads=threads())
        ctx.save_for_backward(x, w)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        ops.layer_norm_grad(*map(array, (x, w, d_out, dx, dw)), eps=ctx.eps, threads=threads())
        return dx, dw, None


class _BlockDiagonal(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        x = x.contiguous()
        weights = [w for w in parameters[:count] if w is not None]
        biases = parameters[count:]
        outs = [torch.empty(*x.shape[:-1], w.shape[0] * w.shape[1]) for w in weights]
        ops.block_diagonal(
            array(x),
            [array(w) for w in weights],
            [_array(b) for b in biases],
            [array(out) for out in outs],
            threads=threads(),
        )
        ctx.save_for_backward(x, *weights)
        ctx.biased = [b is not None for b in biases]
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weights = [torch.empty_like(w) for w in weights]
        d_biases = [
            torch.empty(d_out.shape[-1]) if biased else None
            for d_out, biased in zip(d_outs, ctx.biased, strict=True)
        ]
        ops.block_diagonal_grad(
            array(x),
            [array(w) for w in weights],
            [array(d) for d in d_outs],
            _array(dx),
            [array(d) for d in d_weights],
            [_array(d) for d in d_biases],
            threads=threads(),
        )
        return dx, None, *d_weights, *d_biases


class _CausalConv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        state: Tensor | None,
        starts: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        y, last = torch.empty_like(x), torch.empty(x.shape[0], w.shape[-1] - 1, x.shape[2])
        given = (x, w, b, state, starts)
        ops.causal_conv(*map(_array, (*given, y, last)), silu=silu, threads=threads())
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.silu = silu
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        x, w, b, state, _ = given
        dy = torch.zeros_like(x) if dy is None else dy
        dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(b)
        d_state = torch.empty_like(state) if ctx.needs_input_grad[3] else None
        arrays = map(_array, (*given, dy, d_last, dx, dw, db, d_state))
        ops.causal_conv_grad(*arrays, silu=ctx.silu, threads=threads())
        return dx, dw, db, d_state, None, None


class _Activate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        ops.activate(activation, array(x), array(out), threads=threads())
        ctx.save_for_backward(x)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        ops.activate_grad(ctx.activation, *map(array, (x, d_out, dx)), threads=threads())
        return dx, None


class _Glu(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        ops.glu(activation, *map(array, (gate, up, out)), threads=threads())
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        arrays = map(array, (gate, up, d_out, d_gate, d_up))
        ops.glu_grad(ctx.activation, *arrays, threads=threads())
        return d_gate, d_up, None


class _HeadNormSkipGate(Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, c: Tensor, z: Tensor, w: Tensor, skip: Tensor, eps: float
    ) -> Tensor:
        inputs = tuple(x.contiguous() for x in (h, c, z, w, skip))
        out = torch.empty_like(inputs[2])
        ops.head_norm_skip_gate(*map(array, (*inputs, out)), eps=eps, threads=threads())
        ctx.save_for_backward(*inputs)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        arrays = map(array, (*inputs, d_out, *grads))
        ops.head_norm_skip_gate_grad(*arrays, eps=ctx.eps, threads=threads())
        return *grads, None


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _array(x: Tensor | None) -> Any:
    return None if x is None else array(x)
