"""Native operators as custom ops (forward, backward) over NumPy arrays.

An adapter per framework makes each a differentiable function of its arrays. Every array is
float32 and row-major. Only NumPy arrays reach `_native`: on a Mac an array of MLX says that it lies
in Metal's memory, which native code refuses, although the CPU can read it. `Ops` has the promises
of the operators, `metal/native/ops` the kernels; those of linear recurrences compute position by
position, at any chunk size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import ops

View = NDArray[Any]
"""The memory of a framework's array, for reading, or a result that native code has written."""

Views = Sequence[Any]
"""Several, some of them None where an operator says so."""


@dataclass(frozen=True, eq=False)
class CustomOp:
    """An operator and its gradient; both also take the operator's settings by name.

    `forward` (*inputs, keep, threads) returns the results, and the arrays that `backward` needs; an
    input may be None where an operator says so. Without `keep` no gradient follows. `backward`
    (saved, d_results, needs, threads) returns a gradient per input. An entry of d_results is None
    for a result that was not used; at least one is an array. `needs` marks the inputs whose
    gradients are used; the others need not be computed.
    """

    forward: Callable[..., tuple[Views, Views]]
    backward: Callable[..., Views]
    saved_results: tuple[int, ...] = ()  # that `backward` needs, behind the arrays of `forward`


def empty_like(*arrays: Any) -> list[Any]:
    """Return an uninitialised array for each, of its shape; None for None."""
    return [None if x is None else ops.empty(x.shape) for x in arrays]


def zeros_if_none(x: View | None, shape: Sequence[int]) -> View:
    """Return x, or zeros of that shape if it is None."""
    return np.zeros(shape, np.float32) if x is None else x


def own(x: View | None, like: View) -> View:
    """Return a copy of x, which a kernel may overwrite, or zeros shaped as `like`."""
    return np.zeros(like.shape, np.float32) if x is None else x.copy()


def custom_op(
    call: Callable[..., None],
    call_grad: Callable[..., None],
    shapes: Callable[..., Sequence[Sequence[Any]]],
    *,
    state: bool = False,
) -> CustomOp:
    """Return the custom op of two kernels that write into arrays which they are given.

    Args:
        call: takes the inputs, the results, and the arrays that are kept for the gradient.
        call_grad: takes the inputs, the arrays that were kept, the gradients of the results, all
            but the first maybe None, and the gradients of the inputs.
        shapes: from the inputs and the settings to the shapes of the results, and of the arrays
            that are kept; None for one that is not needed.
        state: whether the last input is the state before the first position, or None.
    """

    def forward(*inputs: Any, keep: bool, threads: int, **how: Any) -> tuple[Views, Views]:
        of_results, of_kept = shapes(*inputs, **how)
        results = [ops.empty(shape) for shape in of_results]
        kept = [ops.empty(shape) if keep and shape else None for shape in of_kept]
        call(*inputs, *results, *kept, threads=threads, **how)
        return results, (*inputs, *kept)

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
    """Return the custom op of the kernels NAME and NAME_grad, with one result, shaped as an input.

    A setting may be their first argument.
    """
    kernels = (getattr(ops, one) for one in (name, f"{name}_grad"))
    call, call_grad = (_at(0, setting, one) if setting else one for one in kernels)
    return custom_op(call, call_grad, lambda *inputs, **_: ((inputs[like].shape,), ()))


def _at(position: int, name: str, call: Callable[..., None]) -> Callable[..., None]:
    """Wrap `call` so that keyword `name` becomes its argument number `position`."""
    return lambda *x, **how: call(*x[:position], how.pop(name), *x[position:], **how)


def _of_one(call: Callable[..., None], x: View, *others: View | None, **how: Any) -> Views:
    """The only result of a kernel, shaped as its first array."""
    out = ops.empty(x.shape)
    call(x, *others, out, **how)
    return (out,)


def _without(position: int, call: Callable[..., None]) -> Callable[..., None]:
    """A kernel that does not take one of the arrays."""
    return lambda *x, **how: call(*x[:position], *x[position + 1 :], **how)


SOFT_CAP = CustomOp(
    lambda x, *, keep, **how: (_of_one(ops.soft_cap, x, **how), ()),
    lambda saved, d_results, _, **how: _of_one(ops.soft_cap_grad, *saved, *d_results, **how),
    saved_results=(0,),
)

# -- linear maps -----------------------------------------------------------------------------------


def _maps(
    call: Callable[..., None], call_grad: Callable[..., None], width: Callable[[View], int]
) -> CustomOp:
    """Return the custom op (x, every weight, every bias or None) -> every result of linear layers.

    `width` returns the last axis of a result from its weight.
    """

    def forward(x: View, *parameters: Any, keep: bool, **how: Any) -> tuple[Views, Views]:
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
        d_weights = empty_like(*weights)
        d_biases = [
            ops.empty((width(w),)) if needed else None
            for w, needed in zip(weights, has_bias, strict=True)
        ]
        call_grad(x, weights, d_outs, dx, d_weights, d_biases, **how)
        return dx, *d_weights, *d_biases

    return CustomOp(forward, backward)


LINEARS = _maps(ops.linears, ops.linears_grad, lambda w: w.shape[0])
BLOCK_DIAGONAL = _maps(
    ops.block_diagonal, ops.block_diagonal_grad, lambda w: w.shape[0] * w.shape[1]
)

# -- along the sequence ----------------------------------------------------------------------------

CAUSAL_CONV = custom_op(
    _at(4, "starts", ops.causal_conv),
    _at(4, "starts", ops.causal_conv_grad),
    lambda x, w, *_, **__: ((x.shape, (x.shape[0], w.shape[-1] - 1, x.shape[2])), ()),
    state=True,
)
"""(x, w, b, state or None) -> y, last."""

ROPE = CustomOp(
    lambda x, *, keep, offset, **how: (_of_one(ops.rope, x, offset, back=False, **how), ()),
    lambda _, dy, __, *, offset, **how: _of_one(ops.rope, *dy, offset, back=True, **how),
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
    by_value: bool = False, **__: Any,
) -> Sequence[Any]:  # fmt: skip
    (B, S, NH, DK), DV = k.shape, v.shape[-1]
    kept = B, NH, ops.recurrence_chunks(S=S, DK=DK), DK, DV
    held = None if beta is None and read is None else v.shape
    return ((k if by_value else v).shape, (B, NH, DK, DV)), (kept, held)


def _scan_shapes(u: View, dt: View, A: View, *_: Any, **__: Any) -> Sequence[Any]:
    (B, S, C), N = u.shape, A.shape[1]
    return (u.shape, (B, C, N)), ((ops.scan_kept(B=B, S=S, C=C, N=N),),)


RECURRENCE = custom_op(
    ops.recurrence, _without(7, ops.recurrence_grad), _recurrence_shapes, state=True
)
"""(q, k, v, log_decay; beta, read, removal, state or None) -> h, last."""

SCAN = custom_op(ops.scan, _without(5, ops.scan_grad), _scan_shapes, state=True)
"""(u, dt, A, Bt, Ct, state or None) -> y, last."""


def _regression(*inputs: Any, steps: int, keep: bool, threads: int) -> tuple[Views, Views]:
    q, k, log_decay, ridge, state = inputs
    results, (chunks, _) = _recurrence_shapes(q, k, k, log_decay, None, None)
    x, last = map(ops.empty, results)
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
    d_solution = zeros_if_none(dx, k.shape)
    how: dict[str, Any] = {"steps": steps, "threads": threads}
    ops.regression(d_solution, k, log_decay, ridge, state, dq, None, None, **how)
    none = (None, None, None)
    inputs = (x, k, k, log_decay, *none, kept, None, -dq, d_last)
    ops.recurrence_grad(*inputs, d_unused, dk, dv, d_log, *none, d_state, threads=threads)
    return dq, dk + dv, d_log, -(dq * x).sum((0, 1)), d_state


REGRESSION = CustomOp(_regression, _regression_grad, saved_results=(0,))
"""(q, k, log_decay, ridge, state or None) -> x, last.

The gradient of q solves the same systems; the others are those of S_t x_t, a `RECURRENCE` of k
and k.
"""

# -- the cells of xLSTM ----------------------------------------------------------------------------


def _mlstm(
    *inputs: Any, starts: View | None, chunk_size: int, eps: float, keep: bool, threads: int
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
    ops.mlstm(q, k, v, i, f, starts, h, den, C, n, m, **how)
    last = (states[:, :, -1].copy() for states in (C, n, m))
    return (h, *last), (q, k, v, i, f, den, C, n, m)


def _mlstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, starts: View | None, chunk_size: int,
    eps: float, threads: int,
) -> Views:  # fmt: skip
    q, k, v, i, f, *between, h = saved
    dh, *d_last = d_results
    grads = empty_like(q, k, v, i, f)
    d_state = [own(d, states[:, :, 0]) for d, states in zip(d_last, between[1:], strict=True)]
    stride = ops.mlstm_stride(DK=q.shape[-1], chunk=chunk_size)
    how: dict[str, Any] = {"chunk": chunk_size, "stride": stride, "eps": eps, "threads": threads}
    buffers: tuple[Any, ...] = (q, k, v, i, f, starts, h, *between, zeros_if_none(dh, h.shape))
    ops.mlstm_grad(*buffers, *grads, *d_state, **how)
    return *grads, *d_state


MLSTM = CustomOp(_mlstm, _mlstm_grad, saved_results=(0,))
"""(q, k, v, i, f, then C, n, m or None) -> h and the last C, n, m."""


def _slstm(*inputs: Any, starts: View | None, keep: bool, threads: int) -> tuple[Views, Views]:
    i, f, z, o, R, b, *state = inputs
    B, S, NH, DH = i.shape
    h0, c0, n0, m0 = (zeros_if_none(x, (B, NH, DH)) for x in state)
    h, last = ops.empty(i.shape), [x.copy() for x in (h0, c0, n0, m0)]
    tape = ops.empty((B, S, NH, ops.SLSTM_SAVED, DH)) if keep else None
    ops.slstm(i, f, z, o, R, b, starts, h, tape, *last, threads=threads)
    return (h, *last), (R, h0, c0, n0, tape)


def _slstm_grad(
    saved: Views, d_results: Views, _: Sequence[bool], *, starts: View | None, threads: int
) -> Views:
    R, h0, c0, n0, tape, h = saved
    dh, *d_last = d_results
    grads = [*empty_like(h, h, h, h, R), ops.empty((4 * h0[0].size,))]
    d_state = [own(d, h0) for d in d_last]
    arrays = (h0, c0, n0, h, tape, zeros_if_none(dh, h.shape), *grads, *d_state)
    ops.slstm_grad(R, starts, *arrays, threads=threads)
    return *grads, *d_state


SLSTM = CustomOp(_slstm, _slstm_grad, saved_results=(0,))
"""(i, f, z, o, R, b, then h, c, n, m or None) -> h and the last h, c, n, m."""


def _slstm_again(saved: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
    (h, *_), recomputed = _slstm(*saved, keep=True, **how)
    return _slstm_grad((*recomputed, h), d_results, needs, **how)


SLSTM_RECOMPUTED = CustomOp(
    lambda *x, keep, **how: (_slstm(*x, keep=False, **how)[0], x), _slstm_again
)
"""As `SLSTM`; the backward pass runs the cell again instead of keeping seven arrays of its steps.

For a framework whose forward pass does not know whether a gradient will follow.
"""

# -- the loss --------------------------------------------------------------------------------------


def _loss(call: Callable[..., tuple[float, int]]) -> CustomOp:
    """The gradients are computed with the loss, in one pass, and scaled by the backward pass."""

    def forward(
        *inputs: View, labels: View, log_inclusion: View | None, keep: bool, **how: Any
    ) -> tuple[Views, Views]:
        grads = empty_like(*inputs) if keep else [None] * len(inputs)
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
"""logits -> nats, how many labels count."""

LINEAR_CROSS_ENTROPY = _loss(ops.linear_cross_entropy)
"""(x, w), the factors of the logits x w^T -> likewise."""
