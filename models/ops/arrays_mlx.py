"""The array functions of `arrays.py` in MLX; those that are not defined here are its own."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.base.mapped import BFLOAT16
from mlxhog.models.ops.frozen import FrozenWeight

framework = "mlx"
differentiable = ContextVar("differentiable", default=True)
"""Whether a gradient may follow; a function with a VJP of its own takes longer to call."""

_DTYPES = {"float32": mx.float32, "int32": mx.int32}
_MAX_PARTS = 10  # outputs of one `mx.split`

Function = TypeVar("Function", bound=Callable[..., Any])


def with_vjp(gradients: Callable[..., Any]) -> Callable[[Function], Function]:
    """Give a function a VJP of its own, used where `differentiable`.

    Args:
        gradients: (inputs, d_results, results) -> gradients of the inputs.
    """

    def decorate(function: Function) -> Function:
        own = mx.custom_function(function)
        own.vjp(gradients)

        def call(*inputs: array) -> Any:
            return own(*inputs) if differentiable.get() else function(*inputs)

        return cast(Function, call)

    return decorate


def needs_gradient(inputs: Sequence[array | None]) -> bool:
    """Whether a gradient may follow; MLX does not say in which arrays."""
    return differentiable.get()


def custom_op(
    forward: Callable[..., Any], backward: Callable[..., Any], *inputs: array | None
) -> Sequence[array]:
    """Return the results of an operator (forward, backward); see `arrays_torch.custom_op`.

    Saved values stay with this one call, so they need not be MLX's arrays, which copies others.
    MLX does not say which gradients will be used: `needs` is true for every input.
    """
    if not differentiable.get():
        return tuple(forward(*inputs)[0])
    needs, arrays, saved = (
        [x is not None for x in inputs],
        [x for x in inputs if x is not None],
        None,
    )

    def run(*present: array) -> list[array]:
        nonlocal saved
        rest = iter(present)
        results, saved = forward(*(next(rest) if need else None for need in needs))
        return list(results)

    def gradients(_: Any, d_results: Sequence[array], __: Any) -> list[array]:
        nonlocal saved
        own_saved, saved = saved, None  # MLX keeps this function until the last gradient
        grads = zip(backward(own_saved, d_results, needs), needs, strict=False)
        own = [grad for grad, need in grads if need]
        return own + [mx.zeros_like(x) for x in arrays[len(own) :]]

    results: Sequence[array] = with_vjp(gradients)(run)(*arrays)
    return results


def _recompute(
    function: Callable[..., array], again: Callable[..., array], *inputs: array, evaluates: bool
) -> array:
    """See `Arrays`; `mx.checkpoint` frees little, lazy or not (MLX 0.32).

    A graph that is evaluated as a whole would compute all blocks again before the first gradient
    of a weight. So a block waits for dy, and the one before it for the gradients of this one.
    While MLX traces a gradient, an evaluated array keeps those that it was computed from. So where
    operators evaluate, results leave the trace as copies.
    """

    def forward(*inputs: array) -> tuple[list[array], Sequence[array]]:
        y = function(*inputs)
        return [_copied(y) if evaluates else y], inputs

    def backward(inputs: Sequence[array], d_results: Sequence[array], _: object) -> list[array]:
        after_dy = list(mx.depends(list(inputs), list(d_results)))
        dx, *others = mx.vjp(again, after_dy, list(d_results))[1]
        return [*map(_copied, (dx, *others))] if evaluates else mx.depends([dx], others) + others

    return custom_op(forward, backward, *inputs)[0]


def _copied(x: array) -> array:
    """Return an evaluated copy of x, outside of any graph."""
    if x.dtype == mx.bfloat16:  # the buffer protocol does not have it
        return _copied(x.view(mx.uint16)).view(mx.bfloat16)
    mx.eval(x)  # NumPy drops an error that is raised as it asks for the memory
    return mx.array(memoryview(np.asarray(x, order="C")))  # type: ignore[arg-type]


# A VJP in one expression is one kernel, MLX's own is two; -x would be kept as an array.
@with_vjp(lambda x, dy, _: dy * mx.sigmoid(0 - x))
def _log_sigmoid(x: array) -> array:
    return -mx.logaddexp(-x, 0)


def _with_gradient(x: array, gradient: Callable[..., array], *constants: array) -> array:
    @with_vjp(lambda inputs, dy, _: (gradient(dy, *inputs[1:]), *map(mx.zeros_like, inputs[1:])))
    def identity(x: array, *constants: array) -> array:
        return x

    # In `mx.compile` MLX 0.32 fails on a broadcast product that a gradient uses, too, unless
    # another node, which copies nothing, is between them.
    return identity(x, *map(mx.contiguous, constants))


def _matmul_gradients(xw: tuple[array, array], dy: array, _: array) -> tuple[array, array]:
    """Return row-major gradients: MLX's own are transposed views, which NumPy copies slowly."""
    x, w = xw
    dx = dy @ w
    if w.ndim == 2:  # for all rows of x at once
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, dy.swapaxes(-1, -2) @ x


@with_vjp(_matmul_gradients)
def _matmul(x: array, w: array) -> array:
    return x @ w.swapaxes(-1, -2)


def _affine_gradients(xwb: Any, dy: array, y: array) -> tuple[array, array, array]:
    return *_matmul_gradients(xwb[:2], dy, y), dy.reshape(-1, dy.shape[-1]).sum(0)


@with_vjp(_affine_gradients)
def _affine(x: array, w: array, b: array) -> array:
    """Return x W^T + b by one kernel."""
    return mx.addmm(b, x.reshape(-1, x.shape[-1]), w.T).reshape(*x.shape[:-1], -1)


def _linear(x: array, w: array, b: array | None = None) -> array:
    if b is not None and w.ndim == 2 and differentiable.get():
        return _affine(x, w, b)
    y = _matmul(x, w)
    return y if b is None else y + b


def _from_numpy(x: Any, *, like: array | None = None) -> array:
    if x.dtype == BFLOAT16:  # the buffer protocol has no bfloat16
        return mx.array(x.view(np.uint16)).view(mx.bfloat16)
    return mx.array(x.astype(np.float32) if x.dtype == np.float64 else x)


def _dequantize(w: FrozenWeight, like: array) -> array:
    first, *affine = (_from_numpy(x) if isinstance(x, np.ndarray) else x for x in w.parts)
    if affine:
        scales, offsets = affine
        first = mx.dequantize(first, scales, offsets, **w.how)
    return cast(array, first.astype(like.dtype))


def _embedding(table: array | FrozenWeight, tokens: array) -> array:
    rows = table[tokens]
    return _dequantize(rows, mx.zeros(1)) if isinstance(rows, FrozenWeight) else rows


def _numpy(x: array) -> Any:
    is_bf16 = x.dtype == mx.bfloat16
    return np.array(x.view(mx.uint16)).view(BFLOAT16) if is_bf16 else np.array(x)


def _entries(x: array, axis: int) -> list[array]:
    """Return the entries of x along an axis, of length 1 there, as views.

    Each of more than `_MAX_PARTS` entries would be a slice, whose gradient has the size of x. So
    they are split recursively; the gradient of a split is one concatenation.
    """
    width = 1
    while x.shape[axis] > _MAX_PARTS * width:
        width *= _MAX_PARTS
    parts = mx.split(x, list(range(width, x.shape[axis], width)), axis)
    return (
        list(parts) if width == 1 else [entry for part in parts for entry in _entries(part, axis)]
    )


_OWN: dict[str, Callable[..., Any]] = {
    "zeros": lambda shape, dtype="float32", *, like=None: mx.zeros(shape, _DTYPES[dtype]),
    "full": lambda shape, value, dtype="float32", *, like=None: mx.full(
        shape, value, _DTYPES[dtype]
    ),
    "full_like": lambda x, value: mx.full(x.shape, value, x.dtype),
    "arange": lambda start, stop, *, like=None: mx.arange(start, stop),
    "from_numpy": _from_numpy,
    "numpy": _numpy,
    "row_major": lambda x: x,  # launches of MLX make their inputs so
    "clone": lambda x: x,
    "needs_gradient": needs_gradient,
    "float32": lambda x: x.astype(mx.float32),
    "int32": lambda x: x.astype(mx.int32),
    "bfloat16": lambda x: x.astype(mx.bfloat16),
    "astype": lambda x, like: x.astype(like.dtype),
    "log_sigmoid": _log_sigmoid,
    "softmax": lambda x, axis=-1: mx.softmax(x, axis),
    "amax": mx.max,
    "depends": lambda x, others: mx.depends([x], list(others))[0] if others else x,
    "with_gradient": _with_gradient,
    "recompute": _recompute,
    "value_and_grad": lambda function, arrays: mx.value_and_grad(function)(dict(arrays)),
    "vjp": lambda function, arrays, d_results: mx.vjp(function, list(arrays), list(d_results))[1],
    "linear": _linear,
    "concatenate": lambda parts, axis=0: mx.concatenate(list(parts), axis),
    "unstack": lambda x, axis=0: [entry.squeeze(axis) for entry in _entries(x, axis)],
    "split": lambda x, parts, axis=0: list(mx.split(x, parts, axis)),
    "halves": lambda w: w.halves() if isinstance(w, FrozenWeight) else list(mx.split(w, 2)),
    "dequantize": _dequantize,
    "permute": lambda x, axes: x.transpose(*axes),
    "pad": lambda x, widths, value=0.0: mx.pad(x, list(widths), constant_values=value),
    "take": lambda x, rows: x[mx.array(list(rows))],
    "embedding": _embedding,
    "rfft": mx.fft.rfft,
    "irfft": mx.fft.irfft,
}


def __getattr__(name: str) -> Any:
    """Return a function of `_OWN`, else MLX's."""
    return globals().setdefault(name, _OWN[name] if name in _OWN else getattr(mx, name))
