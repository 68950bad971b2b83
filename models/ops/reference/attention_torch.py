"""Rotary positions and causal attention in PyTorch; `kernels.py` says what they promise."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rope(x: Tensor, base: float, offset: Tensor | None = None) -> Tensor:
    """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
    S, half = x.shape[1], x.shape[-1] // 2
    t = torch.arange(S, device=x.device)[None]
    if offset is not None:
        t = t + offset[:, None]
    # The angles reach S, where float32 has few digits left for the sine.
    speed = base ** (torch.arange(half, device=x.device, dtype=torch.float32) / -half)
    angle = (t[..., None] * speed)[:, :, None]  # (1 or B, S, 1, half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v (B, L, NH, DH)."""
    S, L = q.shape[1], k.shape[1]
    if window is not None and window >= L - 1:
        window = None
    if S == L and lengths is None:
        if window is None:
            return _attend(q, k, v, None)
        if S > 2 * window:
            return _in_blocks(q, k, v, window)
    key = torch.arange(L, device=q.device)
    query = key[L - S :, None]
    seen = key <= query
    if window is not None:
        seen = seen & (key >= query - window)
    if lengths is not None:
        seen = seen & (key >= L - lengths[:, None])[:, None, None]
    return _attend(q, k, v, seen)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """Attend where `seen` (..., S, L); None is causal with as many keys as queries."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
    return h.transpose(1, 2)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attend block by block to the own and the one before, in time that grows as S."""
    W = max(window, 1)
    B, S, NH, DH = q.shape
    NC = -(-S // W)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, NC * W - S)).view(B, NC, W, NH, DH) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x, (0, 0) * 3 + (1, -1)), x], 2) for x in (k, v))
    key = torch.arange(-W, W, device=q.device)
    query = torch.arange(W, device=q.device)[:, None]
    seen = ((key <= query) & (key >= query - window)).repeat(NC, 1, 1)
    seen[0, :, :W] = False
    h = _attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), seen.repeat(B, 1, 1)[:, None])
    return h.reshape(B, NC * W, NH, DH)[:, :S]
