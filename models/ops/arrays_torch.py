"""The array functions of `arrays.py` in PyTorch; those that are not defined here are its own."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.fft import irfft as irfft
from torch.fft import rfft as rfft

from mlxhog.models.ops.arrays import DType

framework = "torch"
_DTYPES = {"float32": torch.float32, "int32": torch.int32}

moveaxis = torch.movedim  # its other name, moveaxis, is unknown to vmap


def __getattr__(name: str) -> Any:
    """Return a function that is PyTorch's own."""
    return globals().setdefault(name, getattr(torch, name))


def zeros(shape: Sequence[int], dtype: DType = "float32", *, like: Tensor | None = None) -> Tensor:
    return torch.zeros(tuple(shape), dtype=_dtype(dtype, like), device=_device(like))


def full(
    shape: Sequence[int], value: float, dtype: DType = "float32", *, like: Tensor | None = None
) -> Tensor:
    return torch.full(tuple(shape), value, dtype=_dtype(dtype, like), device=_device(like))


def full_like(x: Tensor, value: float) -> Tensor:
    return torch.full_like(x, value)


def arange(start: int, stop: int, *, like: Tensor | None = None) -> Tensor:
    """Return the integers from `start` to below `stop`, int64, on the device of `like`."""
    return torch.arange(start, stop, device=_device(like))


def from_numpy(x: NDArray[Any], *, like: Tensor | None = None) -> Tensor:
    wide = x.dtype == np.float64 and _dtype("float32", like) == torch.float32
    return torch.from_numpy(x.astype(np.float32) if wide else x).to(_device(like))


def float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def int32(x: Tensor) -> Tensor:
    return x.int()


def bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16()


def astype(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def log_sigmoid(x: Tensor) -> Tensor:
    return F.logsigmoid(x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def maximum(x: Tensor, bound: Tensor | float) -> Tensor:
    """Return x, or `bound` where x is below it; there the gradient is 0."""
    return torch.maximum(x, bound) if isinstance(bound, Tensor) else x.clamp(min=bound)


def minimum(x: Tensor, bound: float) -> Tensor:
    """Return x, or `bound` where x is above it; there the gradient is 0."""
    return x.clamp(max=bound)


def cumsum(x: Tensor, axis: int, *, reverse: bool = False) -> Tensor:
    return x.flip(axis).cumsum(axis).flip(axis) if reverse else x.cumsum(axis)


def cummin(x: Tensor, axis: int, *, reverse: bool = False) -> Tensor:
    return x.flip(axis).cummin(axis).values.flip(axis) if reverse else x.cummin(axis).values


def cummax(x: Tensor, axis: int) -> Tensor:
    return x.cummax(axis).values


def sort(x: Tensor, axis: int = -1) -> Tensor:
    return x.sort(axis).values


def stop_gradient(x: Tensor) -> Tensor:
    return x.detach()


def with_gradient(x: Tensor, gradient: Callable[..., Tensor], *constants: Tensor) -> Tensor:
    result: Tensor = cast(Any, _WithGradient).apply(x, gradient, *constants)
    return result


class _WithGradient(torch.autograd.Function):
    """The identity with a gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Callable[..., Tensor], *constants: Tensor) -> Tensor:
        ctx.gradient = gradient
        ctx.save_for_backward(*constants)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient(dy, *ctx.saved_tensors), None, *[None] * len(ctx.saved_tensors)


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if w.ndim == 2:
        return F.linear(x, w, b)
    y = x @ w.mT
    return y if b is None else y + b


def concatenate(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    return torch.cat(list(parts), axis)


def unstack(x: Tensor, axis: int = 0) -> Sequence[Tensor]:
    """Return the entries of x along an axis, without that axis, as views."""
    return x.unbind(axis)


def split(x: Tensor, parts: int | Sequence[int], axis: int = 0) -> Sequence[Tensor]:
    return x.tensor_split(parts if isinstance(parts, int) else tuple(parts), axis)


def halves(w: Tensor) -> Sequence[Tensor]:
    """Return the first and the second half of a matrix's rows, as views."""
    return w.chunk(2)


def repeat(x: Tensor, times: int, axis: int) -> Tensor:
    return x.repeat_interleave(times, axis)


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    return F.pad(x, [width for pair in reversed(widths) for width in pair], value=value)


def take_along_axis(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.gather(axis, index.long())


def take(x: Tensor, rows: Sequence[int]) -> Tensor:
    return x[list(rows)]


def embedding(table: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, table)


def _dtype(name: DType, like: Tensor | None) -> torch.dtype:
    """The type of a new array: beside float64 numbers, those of the reference, no float32."""
    is_wide = name == "float32" and like is not None and like.dtype == torch.float64
    return torch.float64 if is_wide else _DTYPES[name]


def _device(like: Tensor | None) -> torch.device | None:
    return None if like is None else like.device
