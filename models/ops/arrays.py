"""The array functions that models need, as `arrays_torch` and `arrays_mlx` offer them.

A layer or a family is written once over these and the operators of `operators.py`; it finds
them as `run.ops.xp`. Operations with the same spelling in both frameworks are not here: arithmetic,
comparisons, `@`, `x[...]`, `x.shape`, `x.T`, `x.reshape`, `x.sum(axis)`. This module imports no
framework.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = Any
"""An array of the framework at hand: a `torch.Tensor` or an `mlx.core.array`."""

DType = Literal["float32", "int32"]


class Arrays(Protocol):
    """Array functions of one framework; differentiable where a gradient makes sense.

    These are named as in the Python array API standard or NumPy, and do what it says:

        zeros_like ones_like full_like exp log sin cos tanh abs where sort einsum concatenate stack
        tile repeat broadcast_to permute moveaxis diagonal tril take_along_axis

    and so are, by the names of the frameworks, `sigmoid`, `log_sigmoid` (without overflow),
    `logsumexp`, `softmax`, `int32`, `bfloat16`, `cummax`, and `rfft` and `irfft` (x, n, axis). The
    methods below have more to say. A new array without a `like` is on the framework's default
    device.
    """

    framework: str
    """ "torch" or "mlx". """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return one of the functions above."""

    def zeros(self, shape: Sequence[int], dtype: DType = "float32", *, like: Array = None) -> Array:
        """Return zeros, on the device of `like`."""

    def full(
        self, shape: Sequence[int], value: float, dtype: DType = "float32", *, like: Array = None
    ) -> Array:
        """Return an array filled with one value, on the device of `like`."""

    def arange(self, start: int, stop: int, *, like: Array = None) -> Array:
        """Return the integers from `start` to below `stop`, on the device of `like`."""

    def from_numpy(self, x: NDArray[Any], *, like: Array = None) -> Array:
        """Return x on the device of `like`, maybe in the memory of x; float64 becomes float32."""

    def float32(self, x: Array) -> Array:
        """Return x as float32; PyTorch's float64, in which the reference computes, stays."""

    def astype(self, x: Array, like: Array) -> Array:
        """Return x in the type of `like`."""

    def maximum(self, x: Array, bound: Array | float) -> Array:
        """Return x, or `bound` where x is below it."""

    def minimum(self, x: Array, bound: float) -> Array:
        """Return x, or `bound` where x is above it."""

    def amax(self, x: Array, axis: int) -> Array:
        """Return the largest of x along an axis; of equal ones each has a share of the gradient."""

    def cumsum(self, x: Array, axis: int, *, reverse: bool = False) -> Array:
        """Return the sums of x up to each position along an axis, or from each on."""

    def cummin(self, x: Array, axis: int, *, reverse: bool = False) -> Array:
        """Return the smallest of x up to each position along an axis, or from each on."""

    def stop_gradient(self, x: Array) -> Array:
        """Return x as a constant."""

    def with_gradient(self, x: Array, gradient: Callable[..., Array], *constants: Array) -> Array:
        """Return x, through which dy becomes gradient(dy, *constants).

        `gradient` is linear in dy, uses no other array of the computation, and is itself not
        differentiated.
        """

    def linear(self, x: Array, w: Array, b: Array = None) -> Array:
        """Return x W^T + b by the framework itself; `Ops.linears` is for products of note.

        W (..., out, in) may be many matrices, one for each of x (..., N, in). Its gradient is
        row-major.
        """

    def unstack(self, x: Array, axis: int = 0) -> Sequence[Array]:
        """Return the entries of x along an axis, without that axis; the gradient is one stack."""

    def split(self, x: Array, parts: int | Sequence[int], axis: int = 0) -> Sequence[Array]:
        """Return n equal parts of x along an axis, or the parts between some indices, as views."""

    def halves(self, w: Array) -> Sequence[Array]:
        """Return the first and the second half of a matrix's rows; it may be quantised."""

    def pad(self, x: Array, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
        """Return x with a value before and after it, (before, after) times along every axis."""

    def take(self, x: Array, rows: Sequence[int]) -> Array:
        """Return some rows of x, in the order of `rows`."""

    def embedding(self, table: Array, tokens: Array) -> Array:
        """Return the rows `tokens` (...) of a table (V, d), (..., d)."""
