"""The eager operators in PyTorch, as far as `Ops` leaves them to the framework."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.operators import MAX_SUM_TERMS, Ops

MAX_FLOATS = (1 << 29) - 1
"""Largest (M + 2 K) N of a matmul (M, K) (K, N) on an Apple GPU: from 2^31 bytes on some rows are
wrong (pytorch issues 109457 and 122045)."""


class TorchOps(Ops):
    """The operators on tensors of any device."""

    xp = cast(Arrays, arrays_torch)
    activations: Mapping[str, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "relu^2": lambda x: F.relu(x) ** 2,
        "sigmoid": torch.sigmoid,
        "selu": F.selu,
        "softplus": F.softplus,
    }

    def sum_after(self, a: Tensor) -> Tensor:
        return F.pad(a[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)

    def layer_norm(self, x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w, eps=eps)

    def rms_norm(self, x: Tensor, w: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], w, eps)

    def linear(self, x: Tensor, w: Tensor) -> Tensor:
        linear = linear_on_mps if x.device.type == "mps" else F.linear
        return linear(x.to(w.dtype), w).to(x.dtype)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return matmul_on_mps(a, b) if a.device.type == "mps" else a @ b

    def block_diagonal(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
    ) -> Sequence[Tensor]:
        on_mps = x.device.type == "mps"
        operator = block_diagonal_on_mps if on_mps else Ops.block_diagonal
        return operator(self, x, weights, biases)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        h = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=attn_mask is None
        )
        return h.transpose(1, 2)

    def rope(self, x: Tensor, base: float, offset: Tensor | None = None) -> Tensor:
        S, half = x.shape[1], x.shape[-1] // 2
        t = torch.arange(S, device=x.device)[None]
        if offset is not None:
            t = t + offset[:, None]
        frequency = base ** (torch.arange(half, device=x.device, dtype=x.dtype) / -half)
        angle = (t[..., None] * frequency)[:, :, None]  # (1 or B, S, 1, half)
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def linear_on_mps(x: Tensor, w: Tensor) -> Tensor:
    """Return x W^T as smaller matmuls that an Apple GPU computes correctly, with their gradients.

    The gradient of x sums over the rows of W, that of W over the rows of x, so both are split, and
    so is the inner dimension. No matmul is batched: those are not deterministic in bfloat16 on an
    M5 (pytorch issue 180776).

    Args:
        x: (..., K), M rows in all.
        w: (N, K).
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > MAX_SUM_TERMS:
        parts = [linear_on_mps(part, w) for part in torch.split(rows, MAX_SUM_TERMS)]
        return torch.cat(parts).reshape(*x.shape[:-1], len(w))
    M, K = rows.shape
    # of x W^T, of its gradient dy W, and of dy^T x
    max_rows = min(MAX_SUM_TERMS, MAX_FLOATS // (M + 2 * K), (MAX_FLOATS // K - M) // 2)
    max_rows = max(1, min(max_rows, MAX_FLOATS // K - 2 * M))
    outs = [matmul_on_mps(rows, part.T) for part in torch.split(w, max_rows)]
    y = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
    return y.reshape(*x.shape[:-1], len(w))


def matmul_on_mps(a: Tensor, b: Tensor) -> Tensor:
    """Return a (..., M, K) times b (..., K, N) as matmuls of smaller K and N.

    The gradient of a sums over the columns of b.
    """
    if b.shape[-1] > MAX_SUM_TERMS:
        parts = [matmul_on_mps(a, part) for part in torch.split(b, MAX_SUM_TERMS, -1)]
        return torch.cat(parts, -1)
    (x, *xs), (y, *ys) = (torch.split(x, MAX_SUM_TERMS, axis) for x, axis in ((a, -1), (b, -2)))
    total = x @ y
    for x, y in zip(xs, ys, strict=True):
        total = total + x @ y
    return total


def block_diagonal_on_mps(
    ops: TorchOps, x: Tensor, weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    """Return `Ops.block_diagonal` of parts of the rows, over which the gradient of weights sums."""
    rows = torch.split(x.reshape(-1, x.shape[-1]), MAX_SUM_TERMS)
    parts = [Ops.block_diagonal(ops, part, weights, biases) for part in rows]
    ys = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return [y.reshape(*x.shape[:-1], -1) for y in ys]


OPS = TorchOps()
