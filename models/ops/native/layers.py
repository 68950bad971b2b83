"""Native operators as pairs, and those around the cells: norms, maps, gates, the loss.

A pair is two functions over NumPy arrays, one forward and one backward; an adapter per framework
turns it into a differentiable function of its arrays. Every array is float32 and row-major. Only
NumPy arrays reach `_native`: on a Mac an array of MLX says that it lies in Metal's memory, which
native code refuses, although the CPU can read it. `operators.py` has the promises of the operators,
`metal/native/ops` the kernels.
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
class Pair:
    """An operator and its gradient; both also take the operator's settings by name.

    Attributes:
        forward: (*inputs, keep, threads) -> the results, and the arrays that `backward` needs. An
            optional input may be None. Without `keep` no gradient follows, and nothing has to be
            saved.
        backward: (saved, d_results, needs, threads) -> a gradient per input. An entry of d_results
            is None for a result that was not used; at least one is an array. `needs` marks the
            inputs whose gradients are used; the others need not be computed.
        optional: whether an input may be None.
        saved_results: positions of the results that `backward` needs; in `saved` they follow the
            arrays of `forward`.
    """

    forward: Callable[..., tuple[Views, Views]]
    backward: Callable[..., Views]
    optional: bool = False
    saved_results: tuple[int, ...] = ()


def empty_like(*arrays: Any) -> list[Any]:
    """Return an uninitialised array for each, of its shape; None for None."""
    return [None if x is None else ops.empty(x.shape) for x in arrays]


def zeros_if_none(x: View | None, shape: Sequence[int]) -> View:
    """Return x, or zeros of that shape if it is None."""
    return np.zeros(shape, np.float32) if x is None else x


def _one_result(call: Callable[..., None], call_grad: Callable[..., None], like: int = 0) -> Pair:
    """The pair of an operator with one result, shaped as input `like`.

    `call` takes the inputs and the result; `call_grad` the inputs, the gradient of the result, and
    the gradients of the inputs to be written.
    """

    def forward(*inputs: View, keep: bool, **how: Any) -> tuple[Views, Views]:
        out = ops.empty(inputs[like].shape)
        call(*inputs, out, **how)
        return (out,), inputs

    def backward(inputs: Views, d_results: Views, needs: Sequence[bool], **how: Any) -> Views:
        grads = empty_like(*inputs)
        call_grad(*inputs, *d_results, *grads, **how)
        return grads

    return Pair(forward, backward)


RMS_NORM = _one_result(ops.rms_norm, ops.rms_norm_grad)
LAYER_NORM = _one_result(ops.layer_norm, ops.layer_norm_grad)
HEAD_NORM_GATE = _one_result(ops.head_norm_gate, ops.head_norm_gate_grad, like=1)
HEAD_NORM_SKIP_GATE = _one_result(ops.head_norm_skip_gate, ops.head_norm_skip_gate_grad, like=2)
SWIGLU = _one_result(ops.swiglu, ops.swiglu_grad)
LONG_CONV = _one_result(ops.long_conv, ops.long_conv_grad)
ACTIVATE = _one_result(
    lambda *arrays, activation, threads: ops.activate(activation, *arrays, threads=threads),
    lambda *arrays, activation, threads: ops.activate_grad(activation, *arrays, threads=threads),
)
GLU = _one_result(
    lambda *arrays, activation, threads: ops.glu(activation, *arrays, threads=threads),
    lambda *arrays, activation, threads: ops.glu_grad(activation, *arrays, threads=threads),
)


def _head_norm(h: View, w: View, *, keep: bool, **how: Any) -> tuple[Views, Views]:
    (out,), saved = LAYER_NORM.forward(h, w, keep=keep, **how)
    return (out.reshape(*h.shape[:-2], -1),), saved


HEAD_NORM = Pair(_head_norm, LAYER_NORM.backward)
"""As `LAYER_NORM`, the heads of the result joined."""


def _soft_cap(x: View, *, c: float, keep: bool, threads: int) -> tuple[Views, Views]:
    out = ops.empty(x.shape)
    ops.soft_cap(x, out, cap=c, threads=threads)
    return (out,), ()


def _soft_cap_grad(
    saved: Views, d_results: Views, needs: Sequence[bool], *, c: float, threads: int
) -> Views:
    (out,), (d_out,) = saved, d_results
    dx = ops.empty(out.shape)
    ops.soft_cap_grad(out, d_out, dx, cap=c, threads=threads)
    return (dx,)


SOFT_CAP = Pair(_soft_cap, _soft_cap_grad, saved_results=(0,))


def _maps(
    call: Callable[..., None], call_grad: Callable[..., None], width: Callable[[View], int]
) -> Pair:
    """The pair of several maps of one x: (x, every weight, every bias or None) -> every result.

    `width` returns the last axis of a result from its weight.
    """

    def forward(x: View, *parameters: Any, keep: bool, threads: int) -> tuple[Views, Views]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        outs = [ops.empty((*x.shape[:-1], width(w))) for w in weights]
        call(x, list(weights), list(biases), outs, threads=threads)
        return tuple(outs), (x, *weights)

    def backward(saved: Views, d_results: Views, needs: Sequence[bool], *, threads: int) -> Views:
        x, *weights = saved
        has_bias = needs[1 + len(weights) :]
        d_results = [
            zeros_if_none(d_out, (*x.shape[:-1], width(w)))
            for d_out, w in zip(d_results, weights, strict=True)
        ]
        dx = ops.empty(x.shape) if needs[0] else None
        d_weights = empty_like(*weights)
        d_biases = [
            ops.empty((width(w),)) if needed else None
            for w, needed in zip(weights, has_bias, strict=True)
        ]
        call_grad(x, weights, d_results, dx, d_weights, d_biases, threads=threads)
        return dx, *d_weights, *d_biases

    return Pair(forward, backward, optional=True)


LINEARS = _maps(ops.linears, ops.linears_grad, lambda w: w.shape[0])
BLOCK_DIAGONAL = _maps(
    ops.block_diagonal, ops.block_diagonal_grad, lambda w: w.shape[0] * w.shape[1]
)


def _causal_conv(*inputs: Any, starts: View | None, keep: bool, **how: Any) -> tuple[Views, Views]:
    x, w, b, state = inputs
    y, last = ops.empty(x.shape), ops.empty((x.shape[0], w.shape[-1] - 1, x.shape[2]))
    ops.causal_conv(x, w, b, state, starts, y, last, **how)
    return (y, last), inputs


def _causal_conv_grad(
    saved: Views, d_results: Views, needs: Sequence[bool], *, starts: View | None, **how: Any
) -> Views:
    x, w, b, state = saved
    dy, d_last = d_results
    dy = zeros_if_none(dy, x.shape)
    dx, dw, db = empty_like(x, w, b)
    d_state = ops.empty(state.shape) if needs[3] else None
    ops.causal_conv_grad(x, w, b, state, starts, dy, d_last, dx, dw, db, d_state, **how)
    return dx, dw, db, d_state


CAUSAL_CONV = Pair(_causal_conv, _causal_conv_grad, optional=True)
"""(x, w, b, state or None) -> y, last."""


def _cross_entropy(logits: View, *, labels: View, keep: bool, **how: Any) -> tuple[Views, Views]:
    """The gradient is computed with the loss, in one pass, and only scaled by the backward pass."""
    gradient = ops.empty(logits.shape) if keep else None
    return _nats(*ops.cross_entropy(logits, labels, gradient, **how)), (gradient, _unused())


def _linear_cross_entropy(
    x: View, w: View, *, labels: View, keep: bool, **how: Any
) -> tuple[Views, Views]:
    """Likewise, with the gradients of both factors of the logits."""
    grads = empty_like(x, w) if keep else (None, None)
    return _nats(*ops.linear_cross_entropy(x, w, labels, *grads, **how)), (*grads, _unused())


def _nats(nats: float, count: int) -> Views:
    return np.array(nats, np.float32), np.array(count, np.int32)


def _unused() -> View:
    """A mark that `_scaled` clears."""
    return np.ones((), np.bool_)


def _scaled(
    saved: Views, d_results: Views, needs: Sequence[bool], *, threads: int, **_: Any
) -> Views:
    *grads, unused = saved
    # Scaled in place, without a copy as large as the gradients: a second time would scale again.
    if not unused:
        raise RuntimeError("the loss's backward ran twice; run the forward again")
    unused[...] = False
    factor = float(zeros_if_none(d_results[0], ()))
    for grad in grads:
        ops.scale(grad, factor=factor, threads=threads)
    return grads


CROSS_ENTROPY = Pair(_cross_entropy, _scaled)
"""logits -> nats, how many labels count."""

LINEAR_CROSS_ENTROPY = Pair(_linear_cross_entropy, _scaled)
"""(x, w), the factors of the logits x w^T -> likewise."""
