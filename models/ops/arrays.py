"""The array functions that models need, as `arrays_torch` and `arrays_mlx` offer them.

A layer or a family is written once over these and the operators of `operators.py`; they are
`ctx.ops.xp`. Operations with one spelling in both frameworks are not here: arithmetic, comparisons,
`@`, `x[...]`, `x.shape`, `x.T`, `x.reshape`, `x.sum(axis)`. This module imports no framework.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
"""An array of one framework: a `torch.Tensor` or an `mlx.core.array`."""


@dataclass(frozen=True)
class MatmulWeight:
    """A float32 weight of linear layers that are computed in bfloat16, see `mixed.py`."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, the rows first."""
        return tuple(self.array.shape)

    def __getitem__(self, rows: slice) -> "MatmulWeight":
        """Return some rows."""
        return MatmulWeight(self.array[rows])


class Arrays(Protocol):
    """Array functions of one framework; differentiable where a gradient makes sense.

    These are named as in the Python array API standard or NumPy, and do what it says:

        zeros_like ones_like full_like exp log sin cos tanh abs where sort einsum concatenate stack
        tile repeat broadcast_to permute moveaxis diagonal tril take_along_axis

    and so are, by the names of the frameworks, `sigmoid`, `log_sigmoid` (without overflow),
    `logsumexp`, `softmax`, `int32`, `bfloat16`, `cummax`, and `rfft` and `irfft` (x, n, axis).
    The others; a new array is on the device of `like`, or on the default one:

        zeros(shape, dtype="float32", like=x), full(shape, value, dtype="float32", like=x)
        arange(start, stop, like=x)   integers, below stop
        from_numpy(x, like=y)         maybe in the memory of x; float64 becomes float32
        numpy(x)                      x in NumPy, without its gradient
        row_major(x)                  x without its gradient, as kernels need it in memory
        clone(x)                      x in memory of its own, where arrays can be views
        float32(x)                    PyTorch's float64, in which the reference computes, stays
        astype(x, y)                  x in the dtype of y
        maximum(x, bound)             elementwise, of an array or a number
        minimum(x, bound)             elementwise, of a number
        amax(x, axis)                 the maximum; equal ones share the gradient
        cumsum(x, axis, reverse=)     cumulative sums, from the end if reversed; so cummin
        stop_gradient(x)              x as a constant
        needs_gradient(arrays)        whether the gradient of a function of them may follow
        depends(x, others)            x, in a lazy graph not before the others
        custom_op(f, b, *x)           an operator with its backward pass, see `arrays_torch`
        with_gradient(x, g, *c)       x, through which dy becomes g(dy, *c): g is linear in dy, uses
                                      no other array of the computation, and has no gradient
        recompute(f, g, *x, evaluates=) f(*x), an array; the forward pass keeps only x, the backward
                                      pass computes g(*x), whose value may differ, but not its
                                      gradients. `evaluates`: see `Ops`
        value_and_grad(f, arrays)     f(arrays) of arrays by name, a scalar, and its gradient in
                                      each array of floats
        vjp(f, arrays, dy)            gradients of arrays by those of the results of f(*arrays)
        linear(x, w, b)               x W^T + b by the framework itself, for small matmuls; W may be
                                      a batch (.., out, in), one for each of x (.., N, in)
        unstack(x, axis)              the entries without that axis; the gradient is one stack
        split(x, parts, axis)         n equal parts, or those between indices, as views
        halves(w)                     both halves of a matrix's rows; it may be a `FrozenWeight`
        dequantize(w, like)           a `FrozenWeight` as one array in the dtype of `like`
        pad(x, widths, value=0.0)     constant padding, (before, after) along every axis
        take(x, rows)                 some rows of x, in that order
        embedding(table, tokens)      rows (..., d) of a table (V, d), maybe a `FrozenWeight`
    """

    framework: str
    """ "torch" or "mlx". """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return one of the functions above."""
