"""The array functions that models need, as `arrays_torch` and `arrays_mlx` offer them.

A layer or a family is written once over these and the operators of `operators.py`; it finds
them as `run.ops.xp`. Operations with the same spelling in both frameworks are not here: arithmetic,
comparisons, `@`, `x[...]`, `x.shape`, `x.T`, `x.reshape`, `x.sum(axis)`. A new array without a
`like` is on the framework's default device. This module imports no framework.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")

Array: TypeAlias = Any
"""An array of the framework at hand: a `torch.Tensor` or an `mlx.core.array`."""

DType = Literal["float32", "int32"]


class Arrays(Protocol[T]):
    """Array functions of one framework; differentiable where a gradient makes sense."""

    framework: str
    """ "torch" or "mlx". """

    def zeros(self, shape: Sequence[int], dtype: DType = "float32", *, like: T | None = None) -> T:
        """Return zeros, on the device of `like`."""

    def full(
        self, shape: Sequence[int], value: float, dtype: DType = "float32", *, like: T | None = None
    ) -> T:
        """Return an array filled with one value, on the device of `like`."""

    def zeros_like(self, x: T) -> T:
        """Return zeros of the shape, type and device of x."""

    def ones_like(self, x: T) -> T:
        """Return ones of the shape, type and device of x."""

    def full_like(self, x: T, value: float) -> T:
        """Return one value everywhere, of the shape, type and device of x."""

    def arange(self, start: int, stop: int, *, like: T | None = None) -> T:
        """Return the integers from `start` to below `stop`, on the device of `like`."""

    def from_numpy(self, x: NDArray[Any], *, like: T | None = None) -> T:
        """Return x on the device of `like`, maybe in the memory of x; float64 becomes float32."""

    def float32(self, x: T) -> T:
        """Return x as float32; PyTorch's float64, in which the reference computes, stays."""

    def int32(self, x: T) -> T:
        """Return x as int32."""

    def bfloat16(self, x: T) -> T:
        """Return x as bfloat16."""

    def astype(self, x: T, like: T) -> T:
        """Return x in the type of `like`."""

    def exp(self, x: T) -> T:
        """Return e^x."""

    def log(self, x: T) -> T:
        """Return the natural logarithm."""

    def sin(self, x: T) -> T:
        """Return the sine."""

    def cos(self, x: T) -> T:
        """Return the cosine."""

    def tanh(self, x: T) -> T:
        """Return the hyperbolic tangent."""

    def sigmoid(self, x: T) -> T:
        """Return 1 / (1 + e^-x)."""

    def log_sigmoid(self, x: T) -> T:
        """Return -log(1 + e^-x), without overflow."""

    def logsumexp(self, x: T, axis: int) -> T:
        """Return log(sum(e^x)) along an axis."""

    def abs(self, x: T) -> T:
        """Return |x|."""

    def softmax(self, x: T, axis: int = -1) -> T:
        """Return e^x / sum(e^x) along an axis."""

    def maximum(self, x: T, bound: T | float) -> T:
        """Return x, or `bound` where x is below it."""

    def minimum(self, x: T, bound: float) -> T:
        """Return x, or `bound` where x is above it."""

    def amax(self, x: T, axis: int) -> T:
        """Return the largest of x along an axis; of equal ones each has a share of the gradient."""

    def where(self, condition: T, x: T | float, y: T | float) -> T:
        """Return x where the condition holds, else y; one of the two is an array."""

    def cumsum(self, x: T, axis: int, *, reverse: bool = False) -> T:
        """Return the sums of x up to each position along an axis, or from each on."""

    def cummin(self, x: T, axis: int, *, reverse: bool = False) -> T:
        """Return the smallest of x up to each position along an axis, or from each on."""

    def cummax(self, x: T, axis: int) -> T:
        """Return the largest of x up to each position along an axis."""

    def sort(self, x: T, axis: int = -1) -> T:
        """Return x in ascending order along an axis."""

    def rfft(self, x: T, n: int, axis: int) -> T:
        """Return the Fourier transform of x, n entries of it or padded to n, along an axis."""

    def irfft(self, x: T, n: int, axis: int) -> T:
        """Return the n real numbers whose `rfft` is x."""

    def stop_gradient(self, x: T) -> T:
        """Return x as a constant."""

    def with_gradient(self, x: T, gradient: Callable[..., T], *constants: T) -> T:
        """Return x, through which dy becomes gradient(dy, *constants).

        `gradient` is linear in dy, uses no other array of the computation, and is itself not
        differentiated.
        """

    def linear(self, x: T, w: T, b: T | None = None) -> T:
        """Return x W^T + b by the framework itself; `Ops.linears` is for products of note.

        W (..., out, in) may be many matrices, one for each of x (..., N, in). Its gradient is
        row-major.
        """

    def einsum(self, subscripts: str, *operands: T) -> T:
        """Return the sum of products that NumPy's einsum describes."""

    def concatenate(self, parts: Sequence[T], axis: int = 0) -> T:
        """Return arrays one after another along an axis."""

    def stack(self, parts: Sequence[T], axis: int = 0) -> T:
        """Return arrays one after another along a new axis."""

    def unstack(self, x: T, axis: int = 0) -> Sequence[T]:
        """Return the entries of x along an axis, without that axis; the gradient is one stack."""

    def split(self, x: T, parts: int | Sequence[int], axis: int = 0) -> Sequence[T]:
        """Return n equal parts of x along an axis, or the parts between some indices, as views."""

    def halves(self, w: T) -> Sequence[T]:
        """Return the first and the second half of a matrix's rows; it may be quantised."""

    def tile(self, x: T, repetitions: Sequence[int]) -> T:
        """Return x repeated `repetitions` times along each axis, as numpy.tile."""

    def repeat(self, x: T, times: int, axis: int) -> T:
        """Return x with every entry along an axis repeated `times` times, as numpy.repeat."""

    def broadcast_to(self, x: T, shape: Sequence[int]) -> T:
        """Return x stretched to a shape, as arithmetic would."""

    def permute(self, x: T, axes: Sequence[int]) -> T:
        """Return x with its axes in another order."""

    def moveaxis(self, x: T, source: int, destination: int) -> T:
        """Return x with one axis at another place."""

    def diagonal(self, x: T, offset: int, axis1: int, axis2: int) -> T:
        """Return the diagonals of two axes, as the last axis."""

    def tril(self, x: T, k: int) -> T:
        """Return matrices with zeros above diagonal k."""

    def pad(self, x: T, widths: Sequence[tuple[int, int]], value: float = 0.0) -> T:
        """Return x with a value before and after it, (before, after) times along every axis."""

    def take_along_axis(self, x: T, index: T, axis: int) -> T:
        """Return the entries of x that an index of its shape, but for that axis, names."""

    def take(self, x: T, rows: Sequence[int]) -> T:
        """Return some rows of x, in the order of `rows`."""

    def embedding(self, table: T, tokens: T) -> T:
        """Return the rows `tokens` (...) of a table (V, d), (..., d)."""
