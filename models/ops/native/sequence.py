"""The operators along a sequence as (forward, backward) pairs: attention, cells, recurrences.

`operators.py` has the promises of the operators, `metal/native/ops` the kernels. The linear
recurrences compute position by position, at any chunk size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxhog._native import ops
from mlxhog.models.ops.native.layers import Pair, View, Views, empty_like, zeros_if_none


def _rope(x: View, *, offset: View | None, keep: bool, **how: Any) -> tuple[Views, Views]:
    out = ops.empty(x.shape)
    ops.rope(x, offset, out, back=False, **how)
    return (out,), ()


def _rope_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, offset: View | None, **how: Any
) -> Views:
    (d_out,) = d_results
    dx = ops.empty(d_out.shape)
    ops.rope(d_out, offset, dx, back=True, **how)
    return (dx,)


ROPE = Pair(_rope, _rope_grad)


def _attention(
    q: View, k: View, v: View, *, lengths: View | None, keep: bool, **how: Any
) -> tuple[Views, Views]:
    B, S, NH, _ = q.shape
    out, lse = ops.empty(q.shape), ops.empty((B, NH, S))
    ops.attention(q, k, v, lengths, out, lse, **how)
    return (out,), (q, k, v, lse)


def _attention_grad(
    saved: Views, d_results: Views, needs: Sequence[bool], *, lengths: View | None, **how: Any
) -> Views:
    (q, k, v, lse), (d_out,) = saved, d_results
    dq, dk, dv = empty_like(q, k, v)
    ops.attention_grad(q, k, v, lengths, lse, d_out, dq, dk, dv, **how)
    return dq, dk, dv


ATTENTION = Pair(_attention, _attention_grad)


def _mlstm(
    *inputs: Any, chunk_size: int, eps: float, keep: bool, threads: int
) -> tuple[Views, Views]:
    q, k, v, i, f, *state = inputs
    B, S, NH, DK = q.shape
    NC, DV = -(-S // chunk_size), v.shape[-1]
    stride = ops.mlstm_stride(DK=DK, chunk=chunk_size) if keep else max(S, 1)
    # The state before every chunk (C: before every stride-th), and after the last.
    C = ops.empty((B, NH, -(-NC // stride) + 1, DK, DV))
    n, m = ops.empty((B, NH, NC + 1, DK)), ops.empty((B, NH, NC + 1))
    for states, first in zip((C, n, m), state, strict=True):
        states[:, :, 0] = 0.0 if first is None else first
    h, den = ops.empty(v.shape), ops.empty(i.shape)
    how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps, "threads": threads}
    ops.mlstm(q, k, v, i, f, h, den, C, n, m, **how)
    last = (states[:, :, -1].copy() for states in (C, n, m))
    return (h, *last), (q, k, v, i, f, den, C, n, m)


def _mlstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, chunk_size: int, eps: float, threads: int
) -> Views:
    q, k, v, i, f, *between, h = saved
    C, n, m = between[1:]
    dh, *d_last = d_results
    grads = empty_like(q, k, v, i, f)
    d_state = [_own(d, states[:, :, 0]) for d, states in zip(d_last, (C, n, m), strict=True)]
    stride = ops.mlstm_stride(DK=q.shape[-1], chunk=chunk_size)
    how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps, "threads": threads}
    buffers: tuple[Any, ...] = (q, k, v, i, f, h, *between, zeros_if_none(dh, h.shape))
    ops.mlstm_grad(*buffers, *grads, *d_state, **how)
    return *grads, *d_state


MLSTM = Pair(_mlstm, _mlstm_grad, optional=True, saved_results=(0,))
"""(q, k, v, i, f, then C, n, m or None) -> h and the last C, n, m."""


def _slstm(*inputs: Any, starts: View | None, keep: bool, threads: int) -> tuple[Views, Views]:
    i, f, z, o, R, b, *state = inputs
    B, S, NH, DH = i.shape
    h0, c0, n0, m0 = (zeros_if_none(x, (B, NH, DH)) for x in state)
    h, last = ops.empty(i.shape), [x.copy() for x in (h0, c0, n0, m0)]
    tape = ops.empty((B, S, NH, ops.SLSTM_TAPE, DH)) if keep else None
    ops.slstm(i, f, z, o, R, b, starts, h, tape, *last, threads=threads)
    return (h, *last), (R, h0, c0, n0, tape)


def _slstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, starts: View | None, threads: int
) -> Views:
    R, h0, c0, n0, tape, h = saved
    dh, *d_last = d_results
    grads = [*empty_like(h, h, h, h, R), ops.empty((4 * h0[0].size,))]
    d_state = [_own(d, h0) for d in d_last]
    arrays = (h0, c0, n0, h, tape, zeros_if_none(dh, h.shape), *grads, *d_state)
    ops.slstm_grad(R, starts, *arrays, threads=threads)
    return *grads, *d_state


SLSTM = Pair(_slstm, _slstm_grad, optional=True, saved_results=(0,))
"""(i, f, z, o, R, b, then h, c, n, m or None) -> h and the last h, c, n, m."""


def _slstm_untaped(*inputs: View, keep: bool, **how: Any) -> tuple[Views, Views]:
    results, _ = _slstm(*inputs, keep=False, **how)
    return results, inputs


def _slstm_untaped_grad(saved: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
    (h, *_), taped = _slstm(*saved, keep=True, **how)
    return SLSTM.backward((*taped, h), d_results, needs, **how)


SLSTM_UNTAPED = Pair(_slstm_untaped, _slstm_untaped_grad, optional=True)
"""As `SLSTM`; the backward pass runs the cell again instead of keeping seven arrays of its steps.

For a framework whose forward pass does not know whether a gradient will follow.
"""


def _recurrence(
    call: Callable[..., None], call_grad: Callable[..., None], shapes: Callable[..., Sequence[Any]]
) -> Pair:
    """The pair of a linear recurrence, whose last input is the state before it, or None.

    `shapes` returns, from the other inputs and the settings, the shapes of the result, of the
    state, and of the arrays that `call` writes for the gradient; None for one that it does not
    need.
    """

    def forward(*inputs: Any, keep: bool, **how: Any) -> tuple[Views, Views]:
        result, last, *own = shapes(*inputs[:-1], **how)
        results = ops.empty(result), ops.empty(last)
        saved = [ops.empty(shape) if keep and shape else None for shape in own]
        call(*inputs, *results, *saved, **how)
        return results, (*inputs[:-1], *saved)

    def backward(saved: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
        inputs, (d_result, d_last) = saved[: len(needs) - 1], d_results
        result, state, *_ = shapes(*inputs, **how)
        grads = empty_like(*inputs)
        d_state = ops.empty(state) if needs[-1] else None
        call_grad(*saved, zeros_if_none(d_result, result), d_last, *grads, d_state, **how)
        return *grads, d_state

    return Pair(forward, backward, optional=True)


def _head_shapes(
    q: View, k: View, v: View, log_decay: View, beta: View | None, read: View | None, *_: Any,
    by_value: bool = False, **__: Any,
) -> Sequence[Any]:  # fmt: skip
    (B, S, NH, DK), DV = k.shape, v.shape[-1]
    kept = B, NH, ops.recurrence_chunks(S=S, DK=DK), DK, DV
    held = None if beta is None and read is None else v.shape
    return (k if by_value else v).shape, (B, NH, DK, DV), kept, held


def _channel_shapes(u: View, dt: View, A: View, *_: View, **__: Any) -> Sequence[Any]:
    (B, S, C), N = u.shape, A.shape[1]
    return u.shape, (B, C, N), (ops.scan_kept(B=B, S=S, C=C, N=N),)


RECURRENCE = _recurrence(ops.recurrence, ops.recurrence_grad, _head_shapes)
"""(q, k, v, log_decay; beta, read, removal, state or None) -> h, last."""


def _regression(*inputs: Any, steps: int, keep: bool, threads: int) -> tuple[Views, Views]:
    q, k, log_decay, ridge, state = inputs
    shape, matrix, chunks, _ = _head_shapes(q, k, k, log_decay, None, None)
    x, last = ops.empty(shape), ops.empty(matrix)
    kept = ops.empty(chunks) if keep else None
    ops.regression(q, k, log_decay, ridge, state, x, last, kept, steps=steps, threads=threads)
    return (x, last), (k, log_decay, ridge, state, kept)


def _regression_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, steps: int, threads: int
) -> Views:
    k, log_decay, ridge, state, kept, x = saved
    dx, d_last = d_results
    dq, d_unused, dk, dv, d_log = empty_like(k, k, k, k, log_decay)
    d_state = None if state is None else ops.empty(state.shape)
    how: dict[str, Any] = {"steps": steps, "threads": threads}
    d_solution = zeros_if_none(dx, k.shape)
    ops.regression(d_solution, k, log_decay, ridge, state, dq, None, None, **how)
    none = (None, None, None)
    inputs = (x, k, k, log_decay, *none, kept, None, -dq, d_last)
    ops.recurrence_grad(*inputs, d_unused, dk, dv, d_log, *none, d_state, threads=threads)
    return dq, dk + dv, d_log, -(dq * x).sum((0, 1)), d_state


REGRESSION = Pair(_regression, _regression_grad, optional=True, saved_results=(0,))
"""(q, k, log_decay, ridge, state or None) -> x, last.

The gradient of q solves the same systems; the others are those of S_t x_t, a `RECURRENCE` of k
and k.
"""

SCAN = _recurrence(ops.scan, ops.scan_grad, _channel_shapes)
"""(u, dt, A, Bt, Ct, state or None) -> y, last."""


def _own(x: View | None, like: View) -> View:
    """A copy of x, which a kernel may overwrite, or zeros shaped as `like` where it is None."""
    return np.zeros(like.shape, np.float32) if x is None else x.copy()
