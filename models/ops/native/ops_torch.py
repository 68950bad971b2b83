"""The ops as native CPU kernels behind torch autograd; float32 only.

`kernels.py` says what each op promises, `reference/ops_torch.py` is the plain form they are tested
against, `metal/native/ops` holds the kernels. They use `torch.get_num_threads()` threads.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mlxhog._native import ops
from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.native.attention_torch import attention as attention
from mlxhog.models.ops.native.attention_torch import rope as rope
from mlxhog.models.ops.native.call_torch import FAST_GEMM as FAST_GEMM
from mlxhog.models.ops.native.call_torch import array as _array
from mlxhog.models.ops.native.call_torch import threads as _threads
from mlxhog.models.ops.native.decay_torch import decay_cell as decay_cell
from mlxhog.models.ops.native.delta_torch import delta_cell as delta_cell
from mlxhog.models.ops.native.layers_torch import activate as activate
from mlxhog.models.ops.native.layers_torch import block_diagonal as block_diagonal
from mlxhog.models.ops.native.layers_torch import causal_conv as causal_conv
from mlxhog.models.ops.native.layers_torch import glu as glu
from mlxhog.models.ops.native.layers_torch import head_norm as head_norm
from mlxhog.models.ops.native.layers_torch import head_norm_skip_gate as head_norm_skip_gate
from mlxhog.models.ops.native.layers_torch import layer_norm as layer_norm
from mlxhog.models.ops.native.long_conv_torch import long_conv as long_conv
from mlxhog.models.ops.native.scan_torch import selective_scan as selective_scan
from mlxhog.models.ops.native.slstm_torch import slstm_cell as slstm_cell
from mlxhog.models.ops.reference import ops_torch as reference_torch

xp = arrays_torch

ops.keep_freed_memory()


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Scale x to unit mean square over the last axis, then by w."""
    return cast(Tensor, _apply(_RmsNorm, x, w, eps))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return cast(Tensor, _apply(_SwiGLU, gate, up))


def soft_cap(x: Tensor, c: float) -> Tensor:
    """Return c * tanh(x / c)."""
    return cast(Tensor, _apply(_SoftCap, x, c))


def head_norm_gate(h: Tensor, o: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head."""
    return cast(Tensor, _apply(_HeadNormGate, h, o, w, eps))


def capped_cross_entropy(
    raw_logits: Tensor, labels: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    return cast(tuple[Tensor, Tensor], _apply(_CrossEntropy, raw_logits, labels, cap))


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if not FAST_GEMM:
        return reference_torch.linears(x, weights, biases)
    if biases is None:
        biases = (None,) * len(weights)
    return cast(tuple[Tensor, ...], _apply(_Linears, x, len(weights), *weights, *biases))


def mlstm_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Run the cell over (B, S, NH, ...), any S, from `state` (C, n, m) or from zeros."""
    if state is None:
        B, _, NH, DK = q.shape
        C = q.new_zeros(B, NH, DK, v.shape[-1])
        state = (C, q.new_zeros(B, NH, DK), q.new_zeros(B, NH))
    S, DK = q.shape[1], q.shape[3]
    stride = ops.mlstm_stride(DK=DK, chunk=chunk_size) if torch.is_grad_enabled() else S
    h, C, n, m = _apply(_MlstmCell, q, k, v, i, f, *state, chunk_size, stride, eps)
    return h, (C, n, m)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        ops.rms_norm(_array(x), _array(w), _array(out), eps=eps, threads=_threads())
        ctx.save_for_backward(x, w)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        arrays = map(_array, (x, w, d_out, dx, dw))
        ops.rms_norm_grad(*arrays, eps=ctx.eps, threads=_threads())
        return dx, dw, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        ops.swiglu(_array(gate), _array(up), _array(out), threads=_threads())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        arrays = map(_array, (gate, up, d_out, d_gate, d_up))
        ops.swiglu_grad(*arrays, threads=_threads())
        return d_gate, d_up


class _SoftCap(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        ops.soft_cap(_array(x), _array(out), cap=c, threads=_threads())
        ctx.save_for_backward(out)
        ctx.c = c
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        dx = torch.empty_like(out)
        arrays = map(_array, (out, d_out, dx))
        ops.soft_cap_grad(*arrays, cap=ctx.c, threads=_threads())
        return dx, None


class _HeadNormGate(Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, o: Tensor, w: Tensor, eps: float) -> Tensor:
        h, o = h.contiguous(), o.contiguous()
        out = torch.empty_like(o)
        arrays = map(_array, (h, o, w, out))
        ops.head_norm_gate(*arrays, eps=eps, threads=_threads())
        ctx.save_for_backward(h, o, w)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        h, o, w = ctx.saved_tensors
        dh, do, dw = torch.empty_like(h), torch.empty_like(o), torch.empty_like(w)
        arrays = map(_array, (h, o, w, d_out, dh, do, dw))
        ops.head_norm_gate_grad(*arrays, eps=ctx.eps, threads=_threads())
        return dh, do, dw, None


class _CrossEntropy(Function):
    """The gradient is computed with the loss, in one pass, and only scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any, raw_logits: Tensor, labels: Tensor, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        logits = _array(raw_logits)
        gradient = torch.empty(logits.shape) if ctx.needs_input_grad[0] else None
        nats, count = ops.cross_entropy(
            logits,
            labels.detach().to(torch.int32).contiguous().numpy(),
            None if gradient is None else _array(gradient),
            cap=cap,
            threads=_threads(),
        )
        ctx.gradient = gradient
        total = torch.tensor(count)
        ctx.mark_non_differentiable(total)
        return torch.tensor(nats, dtype=torch.float32), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nats: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        # Scaled in a copy-free way only once: a second backward would scale it again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("capped_cross_entropy: backward ran twice; run the forward again")
        ops.scale(_array(gradient), d_nats.item(), threads=_threads())
        return gradient, None, None


class _Linears(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        x = x.contiguous()
        weights, biases = parameters[:count], parameters[count:]
        outs = tuple(torch.empty(*x.shape[:-1], w.shape[0]) for w in weights if w is not None)
        ops.linears(
            _array(x),
            [_array(w) for w in weights if w is not None],
            [None if b is None else _array(b) for b in biases],
            [_array(out) for out in outs],
            threads=_threads(),
        )
        ctx.save_for_backward(x, *weights)
        ctx.biased = [b is not None for b in biases]
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weights = [torch.empty_like(w) for w in weights]
        d_biases = [
            torch.empty(w.shape[0]) if biased else None
            for w, biased in zip(weights, ctx.biased, strict=True)
        ]
        ops.linears_grad(
            _array(x),
            [_array(w) for w in weights],
            [_array(d) for d in d_outs],
            None if dx is None else _array(dx),
            [_array(d) for d in d_weights],
            [None if d is None else _array(d) for d in d_biases],
            threads=_threads(),
        )
        return dx, None, *d_weights, *d_biases


class _MlstmCell(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        C0: Tensor,
        n0: Tensor,
        m0: Tensor,
        chunk_size: int,
        stride: int,
        eps: float,
    ) -> tuple[Tensor, ...]:
        q, k, v, i, f = (x.contiguous() for x in (q, k, v, i, f))
        B, S, NH, DK = q.shape
        NC, DV = -(-S // chunk_size), v.shape[-1]
        # The state before every chunk (C: before every stride-th), and after the last.
        C = torch.empty(B, NH, -(-NC // stride) + 1, DK, DV)
        n, m = torch.empty(B, NH, NC + 1, DK), torch.empty(B, NH, NC + 1)
        h, den = torch.empty_like(v), torch.empty_like(i)
        C[:, :, 0], n[:, :, 0], m[:, :, 0] = C0, n0, m0
        arrays = map(_array, (q, k, v, i, f, h, den, C, n, m))
        how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps}
        ops.mlstm(*arrays, **how, threads=_threads())
        ctx.save_for_backward(q, k, v, i, f, h, den, C, n, m)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return h, *(x[:, :, -1].clone() for x in (C, n, m))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, i, f, h, den, C, n, m = ctx.saved_tensors
        dh = torch.zeros_like(h) if dh is None else dh
        # The kernel overwrites the state's gradient; autograd may hold its argument elsewhere.
        dC, dn, dm = (
            torch.zeros(like[:, :, 0].shape)
            if d is None
            else d.clone(memory_format=torch.contiguous_format)
            for d, like in zip(d_last, (C, n, m), strict=True)
        )
        dq, dk, dv, di, df = (torch.empty_like(x) for x in (q, k, v, i, f))
        arrays = map(_array, (q, k, v, i, f, h, den, C, n, m, dh, dq, dk, dv, di, df, dC, dn, dm))
        ops.mlstm_grad(*arrays, **ctx.how, threads=_threads())
        return dq, dk, dv, di, df, dC, dn, dm, None, None, None


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
