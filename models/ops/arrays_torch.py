"""The array functions of `arrays.py` in PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch import abs as abs
from torch import broadcast_to as broadcast_to
from torch import diagonal as diagonal
from torch import einsum as einsum
from torch import exp as exp
from torch import logsumexp as logsumexp
from torch import ones_like as ones_like
from torch import permute as permute
from torch import sigmoid as sigmoid
from torch import sin as sin
from torch import stack as stack
from torch import tanh as tanh
from torch import tile as tile
from torch import tril as tril
from torch import triu as triu
from torch import where as where
from torch import zeros_like as zeros_like

from mlxhog.models.ops.arrays import DType

framework = "torch"
_DTYPES = {"float32": torch.float32, "int32": torch.int32}

moveaxis = torch.movedim  # its other name, moveaxis, is unknown to vmap


def zeros(shape: Sequence[int], dtype: DType = "float32", *, like: Tensor | None = None) -> Tensor:
    """Return zeros, on the device of `like`."""
    return torch.zeros(tuple(shape), dtype=_DTYPES[dtype], device=_device(like))


def full(
    shape: Sequence[int], value: float, dtype: DType = "float32", *, like: Tensor | None = None
) -> Tensor:
    """Return one value everywhere, on the device of `like`."""
    return torch.full(tuple(shape), value, dtype=_DTYPES[dtype], device=_device(like))


def full_like(x: Tensor, value: float) -> Tensor:
    """Return one value everywhere, of the shape, type and device of x."""
    return torch.full_like(x, value)


def arange(start: int, stop: int, *, like: Tensor | None = None) -> Tensor:
    """Return the integers from `start` to below `stop`, int64, on the device of `like`."""
    return torch.arange(start, stop, device=_device(like))


def from_numpy(x: NDArray[Any], *, like: Tensor | None = None) -> Tensor:
    """Return x on the device of `like`, maybe in the memory of x; float64 becomes float32."""
    return torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x).to(_device(like))


def float32(x: Tensor) -> Tensor:
    """Return x as float32."""
    return x.float()


def int32(x: Tensor) -> Tensor:
    """Return x as int32."""
    return x.int()


def bfloat16(x: Tensor) -> Tensor:
    """Return x as bfloat16."""
    return x.bfloat16()


def astype(x: Tensor, like: Tensor) -> Tensor:
    """Return x in the type of `like`."""
    return x.to(like.dtype)


def log_sigmoid(x: Tensor) -> Tensor:
    """Return -log(1 + e^-x), without overflow."""
    return F.logsigmoid(x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Return e^x / sum(e^x) along an axis."""
    return torch.softmax(x, axis)


def maximum(x: Tensor, bound: Tensor | float) -> Tensor:
    """Return x, or `bound` where x is below it; there the gradient is 0."""
    return torch.maximum(x, bound) if isinstance(bound, Tensor) else x.clamp(min=bound)


def minimum(x: Tensor, bound: float) -> Tensor:
    """Return x, or `bound` where x is above it; there the gradient is 0."""
    return x.clamp(max=bound)


def cumsum(x: Tensor, axis: int, *, reverse: bool = False) -> Tensor:
    """Return the sums of x up to each position along an axis, or from each on."""
    return x.flip(axis).cumsum(axis).flip(axis) if reverse else x.cumsum(axis)


def cummin(x: Tensor, axis: int, *, reverse: bool = False) -> Tensor:
    """Return the smallest of x up to each position along an axis, or from each on."""
    return x.flip(axis).cummin(axis).values.flip(axis) if reverse else x.cummin(axis).values


def sort(x: Tensor, axis: int = -1) -> Tensor:
    """Return x in ascending order along an axis."""
    return x.sort(axis).values


def stop_gradient(x: Tensor) -> Tensor:
    """Return x as a constant."""
    return x.detach()


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return x W^T + b."""
    return F.linear(x, w, b)


def concatenate(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return arrays one after another along an axis."""
    return torch.cat(list(parts), axis)


def unstack(x: Tensor, axis: int = 0) -> Sequence[Tensor]:
    """Return the entries of x along an axis, without that axis, as views."""
    return x.unbind(axis)


def split(x: Tensor, parts: int, axis: int = 0) -> Sequence[Tensor]:
    """Return equal parts of x along an axis, as views."""
    return x.chunk(parts, axis)


def halves(w: Tensor) -> Sequence[Tensor]:
    """Return the first and the second half of a matrix's rows, as views."""
    return w.chunk(2)


def repeat(x: Tensor, times: int, axis: int) -> Tensor:
    """Return x with every entry along an axis so many times in a row."""
    return x.repeat_interleave(times, axis)


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return x with a value before and after it, (before, after) times along every axis."""
    return F.pad(x, [width for pair in reversed(widths) for width in pair], value=value)


def take_along_axis(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return the entries of x that an index of its shape, but for that axis, names."""
    return x.gather(axis, index.long())


def take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Return some rows of x, in the order of `rows`."""
    return x[list(rows)]


def embedding(table: Tensor, tokens: Tensor) -> Tensor:
    """Return the rows `tokens` (...) of a table (V, d), (..., d)."""
    return F.embedding(tokens, table)


def _device(like: Tensor | None) -> torch.device | None:
    return None if like is None else like.device
