"""Native operators as custom ops (forward, backward) over NumPy arrays.

An adapter per framework makes each differentiable. Every array is float32 and row-major. Only NumPy
arrays reach `_native`: on a Mac an array of MLX claims to be in Metal's memory, which native code
refuses, although the CPU can read it. `Ops` has the contracts of the operators, `metal/native/ops`
the kernels; those of linear recurrences compute position by position, at any chunk size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import ops
from mlxhog.base.mapped import BFLOAT16
from mlxhog.models.ops.frozen import FrozenWeight

View = NDArray[Any]
"""A read-only view of a framework's array, or a result of native code."""

Views = Sequence[Any]
"""Several views; an absent optional array is None."""

Frozen = tuple[Views, Views, Views, Views, Views]
"""Frozen weights as arguments of the kernels: lists of floats, bf16, packed, scales, offsets."""


@dataclass(frozen=True, eq=False)
class CustomOp:
    """An operator and its backward pass; both also take the operator's settings by name.

    `forward` (*inputs, save, threads) returns the results and the arrays saved for `backward`; an
    absent optional input is None. Without `save` no gradient follows. `backward` (saved, d_results,
    needs, threads) returns a gradient per input. An entry of d_results is None for a result that
    was not used; at least one is an array. `needs` marks the inputs whose gradients are used; the
    others need not be computed.
    """

    forward: Callable[..., tuple[Views, Views]]
    backward: Callable[..., Views]
    saved_results: tuple[int, ...] = ()  # results that are saved too, after the arrays of `forward`


def empty_like(*arrays: Any) -> list[Any]:
    """Return an uninitialized array for each, of its shape; None for None."""
    return [None if x is None else ops.empty(x.shape) for x in arrays]


def zeros_if_none(x: View | None, shape: Sequence[int]) -> View:
    """Return x, or zeros of that shape if it is None."""
    return np.zeros(shape, np.float32) if x is None else x


def writable(x: View | None, like: View) -> View:
    """Return a copy of x for a kernel to overwrite, or zeros shaped as `like`."""
    return np.zeros(like.shape, np.float32) if x is None else x.copy()


def custom_op(
    call: Callable[..., None],
    call_grad: Callable[..., None],
    shapes: Callable[..., Sequence[Sequence[Any]]],
    *,
    state: bool = False,
) -> CustomOp:
    """Return the custom op of two kernels that write into preallocated arrays.

    Args:
        call: takes the inputs, the results, and the arrays saved for the backward pass.
        call_grad: takes the inputs, the saved arrays, the gradients of the results, all but the
            first maybe None, and the gradients of the inputs.
        shapes: from the inputs and the settings to the shapes of the results, and of the saved
            arrays; None for one that is not needed.
        state: whether the last input is the state before the first position, or None.
    """

    def forward(*inputs: Any, save: bool, threads: int, **how: Any) -> tuple[Views, Views]:
        result_shapes, saved_shapes = shapes(*inputs, **how)
        results = [ops.empty(shape) for shape in result_shapes]
        saved = [ops.empty(shape) if save and shape else None for shape in saved_shapes]
        call(*inputs, *results, *saved, threads=threads, **how)
        return results, (*inputs, *saved)

    def backward(
        saved: Views, d_results: Views, needs: Sequence[bool], *, threads: int, **how: Any
    ) -> Views:
        inputs, (first, *others) = saved[: len(needs)], d_results
        grads = empty_like(*inputs)
        if state and not needs[-1]:
            grads[-1] = None
        (shape, *_), _ = shapes(*inputs, **how)
        call_grad(*saved, zeros_if_none(first, shape), *others, *grads, threads=threads, **how)
        return grads

    return CustomOp(forward, backward)


def simple(name: str, like: int = 0, setting: str = "") -> CustomOp:
    """Return the custom op of the kernels NAME and NAME_grad: one result, shaped as input `like`.

    Their first argument may be a setting.
    """
    kernels = (getattr(ops, one) for one in (name, f"{name}_grad"))
    call, call_grad = (_at(0, setting, one) if setting else one for one in kernels)
    return custom_op(call, call_grad, lambda *inputs, **_: ((inputs[like].shape,), ()))


def _at(position: int, name: str, call: Callable[..., None]) -> Callable[..., None]:
    """Wrap `call` so that keyword `name` becomes its argument number `position`."""
    return lambda *x, **how: call(*x[:position], how.pop(name), *x[position:], **how)


def _one_result(call: Callable[..., None], x: View, *others: View | None, **how: Any) -> Views:
    """Return the only result of a kernel, shaped as its first array."""
    out = ops.empty(x.shape)
    call(x, *others, out, **how)
    return (out,)


def _without(position: int, call: Callable[..., None]) -> Callable[..., None]:
    """Wrap `call` so that argument number `position` is dropped."""
    return lambda *x, **how: call(*x[:position], *x[position + 1 :], **how)


def _rounded(x: View, *, copies: bool = False, threads: int) -> View:
    """Round to bfloat16, in place or in a copy."""
    x = x.copy() if copies else x
    ops.round_to_bfloat16(x, threads=threads)
    return x


def _rounding(op: CustomOp) -> CustomOp:
    """Return the custom op with a setting `bfloat16`, which rounds its first result."""

    def forward(*inputs: Any, bfloat16: bool, **how: Any) -> tuple[Views, Views]:
        results, saved = op.forward(*inputs, **how)
        if bfloat16:
            _rounded(results[0], threads=how["threads"])
        return results, saved

    def backward(*arrays: Any, bfloat16: bool, **how: Any) -> Views:
        return op.backward(*arrays, **how)

    return CustomOp(forward, backward, op.saved_results)


SOFT_CAP = CustomOp(
    lambda x, *, save, **how: (_one_result(ops.soft_cap, x, **how), ()),
    lambda saved, d_results, _, **how: _one_result(ops.soft_cap_grad, *saved, *d_results, **how),
    saved_results=(0,),
)

# -- linear layers ---------------------------------------------------------------------------------


def _linear_op(
    call: Callable[..., None], call_grad: Callable[..., None], width: Callable[[View], int]
) -> CustomOp:
    """Return the custom op (x, weights, biases or None) -> the results of linear layers.

    `width` returns the output width of a weight. No gradient is computed that is not needed.
    """

    def forward(x: View, *parameters: Any, save: bool, **how: Any) -> tuple[Views, Views]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        outs = [ops.empty((*x.shape[:-1], width(w))) for w in weights]
        call(x, list(weights), list(biases), outs, **how)
        return tuple(outs), (x, *weights)

    def backward(saved: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
        x, *weights = saved
        has_bias = needs[1 + len(weights) :]
        d_outs = [
            zeros_if_none(d_out, (*x.shape[:-1], width(w)))
            for d_out, w in zip(d_results, weights, strict=True)
        ]
        dx = ops.empty(x.shape) if needs[0] else None
        d_weights = [
            ops.empty(w.shape) if needed else None
            for w, needed in zip(weights, needs[1:], strict=False)
        ]
        d_biases = [
            ops.empty((width(w),)) if needed else None
            for w, needed in zip(weights, has_bias, strict=True)
        ]
        call_grad(x, weights, d_outs, dx, d_weights, d_biases, **how)
        return dx, *d_weights, *d_biases

    return CustomOp(forward, backward)


LINEARS, LOGITS = (
    _linear_op(partial(ops.linears, rounds=rounds), ops.linears_grad, lambda w: w.shape[0])
    for rounds in (True, False)
)
"""Both round the factors of weights of `bfloat16`; the results of the second stay float32."""

UNREAD_LINEARS = CustomOp(
    lambda x, *parameters, save, **_: (
        [np.zeros((*x.shape[:-1], len(w)), np.float32) for w in parameters[: len(parameters) // 2]],
        (x, *parameters[: len(parameters) // 2]),
    ),
    LINEARS.backward,
)
"""As `LINEARS`, with zeros as results."""


def frozen(weights: Sequence[FrozenWeight]) -> Frozen:
    """Return frozen weights, in arrays of NumPy, as arguments of the kernels."""
    rows = list[list[View | None]]()
    for weight in weights:
        first, *affine = weight.parts
        own: list[View | None] = [None] * 5
        if affine:
            own[2:] = first.view(np.uint32), *affine
        elif first.dtype == BFLOAT16:
            own[1] = first.view(np.uint16)
        else:
            own[0] = first
        rows.append(own)
    floats, bf16, packed, scales, offsets = (list(column) for column in zip(*rows, strict=True))
    return floats, bf16, packed, scales, offsets


def _frozen_op(*, rounds: bool) -> CustomOp:
    """Return the custom op x -> the results of frozen linear layers; nothing is saved."""

    def sizes(frozen: Frozen) -> list[int]:
        return [next(len(x) for x in own if x is not None) for own in zip(*frozen, strict=True)]

    def forward(x: View, *, save: bool, frozen: Frozen, **how: Any) -> tuple[Views, Views]:
        outs = [ops.empty((*x.shape[:-1], width)) for width in sizes(frozen)]
        ops.frozen_linears(x, *frozen, outs, rounds=rounds, **how)
        return outs, (np.array(x.shape[-1]),)

    def backward(
        saved: Views, d_results: Views, _: Sequence[bool], *, frozen: Frozen, **how: Any
    ) -> Views:
        (inputs,), rows = saved, next(d.shape[:-1] for d in d_results if d is not None)
        pairs = zip(d_results, sizes(frozen), strict=True)
        d_outs = [zeros_if_none(d_out, (*rows, width)) for d_out, width in pairs]
        dx = ops.empty((*rows, int(inputs)))
        ops.frozen_linears_grad(*frozen, d_outs, dx, **how)
        return (dx,)

    return CustomOp(forward, backward)


FROZEN_LINEARS, FROZEN_LOGITS = _frozen_op(rounds=True), _frozen_op(rounds=False)


def _diagonal(
    x: View, weights: Views, biases: Views, outs: Views, bfloat16: Sequence[bool], threads: int
) -> None:
    if not any(bfloat16):
        ops.block_diagonal(x, weights, biases, outs, threads=threads)
        return
    how: dict[str, Any] = {"copies": True, "threads": threads}
    factors = _rounded(x, **how), [_rounded(w, **how) for w in weights]
    ops.block_diagonal(*factors, biases, outs, threads=threads)
    for y in outs:
        _rounded(y, threads=threads)


def _diagonal_grad(
    x: View, weights: Views, d_outs: Views, *grads: Any, bfloat16: Sequence[bool], threads: int
) -> None:
    if any(bfloat16):
        how: dict[str, Any] = {"copies": True, "threads": threads}
        x, *rounded = (_rounded(one, **how) for one in (x, *weights, *d_outs))
        weights, d_outs = rounded[: len(weights)], rounded[len(weights) :]
    ops.block_diagonal_grad(x, weights, d_outs, *grads, threads=threads)


BLOCK_DIAGONAL = _linear_op(_diagonal, _diagonal_grad, lambda w: w.shape[0] * w.shape[1])
"""All its weights are `MatmulWeight`s, or none is."""

# -- along the sequence ----------------------------------------------------------------------------

CAUSAL_CONV = _rounding(
    custom_op(
        _at(4, "reset_mask", ops.causal_conv),
        _at(4, "reset_mask", ops.causal_conv_grad),
        lambda x, w, *_, **__: ((x.shape, (x.shape[0], w.shape[-1] - 1, x.shape[2])), ()),
        state=True,
    )
)
"""(x, w, b, state or None) -> y, last."""

ROPE = CustomOp(
    lambda x, *, save, offset, **how: (_one_result(ops.rope, x, offset, back=False, **how), ()),
    lambda _, dy, __, *, offset, **how: _one_result(ops.rope, *dy, offset, back=True, **how),
)


def _attend(q: View, k: View, v: View, out: View, lse: View | None, **how: Any) -> None:
    B, S, NH, _ = q.shape
    lse = ops.empty((B, NH, S)) if lse is None else lse
    ops.attention(q, k, v, how.pop("lengths"), out, lse, **how)


ATTENTION = custom_op(
    _attend,
    _at(3, "lengths", ops.attention_grad),
    lambda q, *_, **__: ((q.shape,), ((q.shape[0], q.shape[2], q.shape[1]),)),
)


def _recurrence_shapes(
    q: View, k: View, v: View, log_decay: View, beta: View | None, read: View | None, *_: Any,
    transpose_state: bool = False, **__: Any,
) -> Sequence[Any]:  # fmt: skip
    (B, S, NH, DK), DV = k.shape, v.shape[-1]
    states = B, NH, ops.recurrence_chunks(S=S, DK=DK), DK, DV
    removed = None if beta is None and read is None else v.shape
    return ((k if transpose_state else v).shape, (B, NH, DK, DV)), (states, removed)


def _transposable(call: Callable[..., None]) -> Callable[..., None]:
    return lambda *x, transpose_state, **how: call(*x, by_value=transpose_state, **how)


def _scan_shapes(u: View, dt: View, A: View, *_: Any, **__: Any) -> Sequence[Any]:
    (B, S, C), N = u.shape, A.shape[1]
    return (u.shape, (B, C, N)), ((ops.scan_kept(B=B, S=S, C=C, N=N),),)


RECURRENCE = custom_op(
    _transposable(ops.recurrence),
    _without(7, _transposable(ops.recurrence_grad)),
    _recurrence_shapes,
    state=True,
)
"""(q, k, v, log_decay; beta, read, removal, state or None) -> h, last."""

SCAN = custom_op(ops.scan, _without(5, ops.scan_grad), _scan_shapes, state=True)
"""(u, dt, A, Bt, Ct, state or None) -> y, last."""


def _regression(*inputs: Any, steps: int, save: bool, threads: int) -> tuple[Views, Views]:
    q, k, log_decay, ridge, state = inputs
    results, (chunks, _) = _recurrence_shapes(q, k, k, log_decay, None, None)
    x, last = map(ops.empty, results)
    states = ops.empty(chunks) if save else None
    ops.regression(q, k, log_decay, ridge, state, x, last, states, steps=steps, threads=threads)
    return (x, last), (k, log_decay, ridge, state, states)


def _regression_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, steps: int, threads: int
) -> Views:
    k, log_decay, ridge, state, states, x = saved
    dx, d_last = d_results
    dq, d_unused, dk, dv, d_log = empty_like(k, k, k, k, log_decay)
    d_state = None if state is None else ops.empty(state.shape)
    d_solution = zeros_if_none(dx, k.shape)
    how: dict[str, Any] = {"steps": steps, "threads": threads}
    ops.regression(d_solution, k, log_decay, ridge, state, dq, None, None, **how)
    none = (None, None, None)
    inputs = (x, k, k, log_decay, *none, states, None, -dq, d_last)
    ops.recurrence_grad(*inputs, d_unused, dk, dv, d_log, *none, d_state, threads=threads)
    return dq, dk + dv, d_log, -(dq * x).sum((0, 1)), d_state


REGRESSION = CustomOp(_regression, _regression_grad, saved_results=(0,))
"""(q, k, log_decay, ridge, state or None) -> x, last.

The gradient of q solves the same systems; the others are those of S_t x_t, a `RECURRENCE` of k
and k.
"""

# -- the cells of xLSTM ----------------------------------------------------------------------------


def _mlstm(
    *inputs: Any, reset_mask: View | None, chunk_size: int, eps: float, save: bool, threads: int
) -> tuple[Views, Views]:
    q, k, v, i, f, *state = inputs
    B, S, NH, DK = q.shape
    NC, DV = -(-S // chunk_size), v.shape[-1]
    stride = ops.mlstm_stride(DK=DK, chunk=chunk_size) if save else max(S, 1)
    # The state before every chunk (C: before every stride-th), and after the last.
    C = ops.empty((B, NH, -(-NC // stride) + 1, DK, DV))
    n, m = ops.empty((B, NH, NC + 1, DK)), ops.empty((B, NH, NC + 1))
    for states, first in zip((C, n, m), state, strict=True):
        states[:, :, 0] = 0.0 if first is None else first
    h, den = ops.empty(v.shape), ops.empty(i.shape)
    how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps, "threads": threads}
    ops.mlstm(q, k, v, i, f, reset_mask, h, den, C, n, m, **how)
    last = (states[:, :, -1].copy() for states in (C, n, m))
    return (h, *last), (q, k, v, i, f, den, C, n, m)


def _mlstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, reset_mask: View | None, chunk_size: int,
    eps: float, threads: int,
) -> Views:  # fmt: skip
    q, k, v, i, f, *between, h = saved
    dh, *d_last = d_results
    grads = empty_like(q, k, v, i, f)
    pairs = zip(d_last, between[1:], strict=True)
    d_state = [writable(d, states[:, :, 0]) for d, states in pairs]
    stride = ops.mlstm_stride(DK=q.shape[-1], chunk=chunk_size)
    how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps, "threads": threads}
    buffers: tuple[Any, ...] = (q, k, v, i, f, reset_mask, h, *between, zeros_if_none(dh, h.shape))
    ops.mlstm_grad(*buffers, *grads, *d_state, **how)
    return *grads, *d_state


MLSTM = _rounding(CustomOp(_mlstm, _mlstm_grad, saved_results=(0,)))
"""(q, k, v, i, f, then C, n, m or None) -> h and the last C, n, m."""


def _slstm(*inputs: Any, reset_mask: View | None, save: bool, threads: int) -> tuple[Views, Views]:
    i, f, z, o, R, b, *state = inputs
    B, S, NH, DH = i.shape
    h0, c0, n0, m0 = (zeros_if_none(x, (B, NH, DH)) for x in state)
    h, last = ops.empty(i.shape), [x.copy() for x in (h0, c0, n0, m0)]
    saved = ops.empty((B, S, NH, ops.SLSTM_SAVED, DH)) if save else None
    ops.slstm(i, f, z, o, R, b, reset_mask, h, saved, *last, threads=threads)
    return (h, *last), (R, h0, c0, n0, saved)


def _slstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, reset_mask: View | None, threads: int
) -> Views:
    R, h0, c0, n0, activations, h = saved
    dh, *d_last = d_results
    grads = [*empty_like(h, h, h, h, R), ops.empty((4 * h0[0].size,))]
    d_state = [writable(d, h0) for d in d_last]
    arrays = (h0, c0, n0, h, activations, zeros_if_none(dh, h.shape), *grads, *d_state)
    ops.slstm_grad(R, reset_mask, *arrays, threads=threads)
    return *grads, *d_state


SLSTM = CustomOp(_slstm, _slstm_grad, saved_results=(0,))
"""(i, f, z, o, R, b, then h, c, n, m or None) -> h and the last h, c, n, m."""


def _slstm_recomputed(saved: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
    (h, *_), recomputed = _slstm(*saved, save=True, **how)
    return _slstm_grad((*recomputed, h), d_results, needs, **how)


SLSTM_RECOMPUTED = CustomOp(
    lambda *x, save, **how: (_slstm(*x, save=False, **how)[0], x), _slstm_recomputed
)
"""As `SLSTM`, but the backward pass recomputes the activations of the steps instead of saving them.

For a framework whose forward pass does not know whether a gradient will follow.
"""

# -- the loss --------------------------------------------------------------------------------------


def _loss(call: Callable[..., tuple[float, int]]) -> CustomOp:
    """Return the custom op of a loss, whose forward pass also computes the unscaled gradients."""

    def forward(
        *inputs: View, labels: View, log_inclusion: View | None, save: bool, **how: Any
    ) -> tuple[Views, Views]:
        grads = empty_like(*inputs) if save else [None] * len(inputs)
        nats, count = call(*inputs, labels, log_inclusion, *grads, **how)
        unused = np.ones((), np.bool_)  # `_scaled` clears it
        return (np.array(nats, np.float32), np.array(count, np.int32)), (*grads, unused)

    return CustomOp(forward, _scaled)


def _scaled(saved: Views, d_results: Views, _: Sequence[bool], *, threads: int, **__: Any) -> Views:
    *grads, unused = saved
    # Scaled in place, without a copy as large as the gradients: a second time would scale again.
    if not unused:
        raise RuntimeError("the loss's backward ran twice; run the forward again")
    unused[...] = False
    factor = float(zeros_if_none(d_results[0], ()))
    for grad in grads:
        ops.scale(grad, factor=factor, threads=threads)
    return grads


CROSS_ENTROPY = _loss(ops.cross_entropy)
"""logits -> nats, number of labels."""

LINEAR_CROSS_ENTROPY = _loss(ops.linear_cross_entropy)
"""(x, w) of the logits x w^T -> nats, number of labels."""

FROZEN_CROSS_ENTROPY = _loss(
    lambda x, *own, frozen, **how: ops.frozen_cross_entropy(x, *frozen, *own, **how)
)
"""As `LINEAR_CROSS_ENTROPY`, of x alone; the frozen w is a setting."""
