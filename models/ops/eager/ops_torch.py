"""The plain operators in PyTorch, as far as `Ops` leaves them to the framework."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.arrays import Arrays
from mlxhog.models.ops.operators import MAX_SUM_TERMS, Ops

MAX_FLOATS = (1 << 29) - 1
"""Most (M + 2 K) N of a product (M, K) (K, N) on an Apple GPU: from 2^31 bytes on some rows are
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

    def normalized(self, x: Tensor, eps: float, w: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w, eps=eps)

    def rms_norm(self, x: Tensor, w: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], w, eps)

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        linear = product_on_mps if x.device.type == "mps" else F.linear
        return linear(x.to(w.dtype), w).to(x.dtype)

    def sum_of_products(self, a: Tensor, b: Tensor) -> Tensor:
        return sum_on_mps(a, b) if a.device.type == "mps" else a @ b

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
        speed = base ** (torch.arange(half, device=x.device, dtype=x.dtype) / -half)
        angle = (t[..., None] * speed)[:, :, None]  # (1 or B, S, 1, half)
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def product_on_mps(x: Tensor, w: Tensor) -> Tensor:
    """Return x W^T in parts that an Apple GPU computes right, with their gradients.

    The gradient of x is a sum over the rows of W, and that of W one over the rows of x, so both are
    split, and so are the terms of the sum itself. All products have two dimensions: others are not
    deterministic in bfloat16 on an M5 (pytorch issue 180776).

    Args:
        x: (..., K), M rows in all.
        w: (N, K).
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > MAX_SUM_TERMS:
        parts = [product_on_mps(part, w) for part in torch.split(rows, MAX_SUM_TERMS)]
        return torch.cat(parts).reshape(*x.shape[:-1], len(w))
    M, K = rows.shape
    # of x W^T, of its gradient dy W, and of dy^T x
    most = min(MAX_SUM_TERMS, MAX_FLOATS // (M + 2 * K), (MAX_FLOATS // K - M) // 2)
    most = max(1, min(most, MAX_FLOATS // K - 2 * M))
    outs = [sum_on_mps(rows, part.T) for part in torch.split(w, most)]
    y = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
    return y.reshape(*x.shape[:-1], len(w))


def sum_on_mps(a: Tensor, b: Tensor) -> Tensor:
    """Return a (..., M, K) times b (..., K, N) as a sum of shorter products."""
    terms = (torch.split(x, MAX_SUM_TERMS, axis) for x, axis in ((a, -1), (b, -2)))
    total: Tensor | None = None
    for x, y in zip(*terms, strict=True):
        total = x @ y if total is None else total + x @ y
    assert total is not None
    return total


OPS = TorchOps()
