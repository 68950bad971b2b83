"""The plain operators in PyTorch; `kernels.py` says what each promises.

The cells are in `mlstm_torch.py` and `recurrences_torch.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.reference.mlstm_torch import mlstm_cell as mlstm_cell
from mlxhog.models.ops.reference.recurrences_torch import decay_cell as decay_cell
from mlxhog.models.ops.reference.recurrences_torch import delta_cell as delta_cell
from mlxhog.models.ops.reference.recurrences_torch import selective_scan as selective_scan
from mlxhog.models.ops.reference.recurrences_torch import slstm_cell as slstm_cell

xp = arrays_torch

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu^2": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "selu": F.selu,
    "softplus": F.softplus,
}


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Scale x to unit mean square over the last axis, then by w."""
    return F.rms_norm(x, x.shape[-1:], w, eps)


def layer_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Move x to mean 0 and variance 1 over the last axis, then scale by w."""
    return F.layer_norm(x.float(), x.shape[-1:], w.float(), None, eps).to(x.dtype)


def head_norm(h: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return w * LayerNorm(h), normalised over DH within each head and flat, (B, S, NH * DH)."""
    normed = F.layer_norm(h.float(), h.shape[-1:], eps=eps).flatten(-2)
    return (w.float() * normed).to(h.dtype)


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if biases is None:
        biases = [None] * len(weights)
    outs = [F.linear(x.to(w.dtype), w).to(x.dtype) for w in weights]
    return tuple(y if b is None else y + b for y, b in zip(outs, biases, strict=True))


def block_diagonal(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if biases is None:
        biases = [None] * len(weights)
    outs = []
    for w, b in zip(weights, biases, strict=True):
        slices = x.to(w.dtype).reshape(-1, w.shape[0], w.shape[2]).transpose(0, 1)
        y = (slices @ w.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1).to(x.dtype)
        outs.append(y if b is None else y + b)
    return tuple(outs)


def causal_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, C = x.shape
    K = w.shape[-1]
    past = x.new_zeros(B, K - 1, C) if state is None else state
    inputs = torch.cat([past.float(), x.float()], 1)  # position t is at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    if starts is not None:
        back = positions_back(starts, K)[..., None]
        taps = [torch.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
    y = b.float()
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].float() * tap
    return (F.silu(y) if silu else y).to(x.dtype), last_inputs(inputs[:, S:], starts)


def positions_back(starts: Tensor, K: int) -> Tensor:
    """Return how many positions before its own each may see, at most K - 1; (B, S) int32."""
    S = starts.shape[1]
    document = F.pad(starts.int().cumsum(1), (K - 1, 0))
    of_output = document[:, K - 1 :]
    back = torch.zeros_like(of_output)
    for j in range(K - 1):
        back += document[:, j : j + S] == of_output
    return back.int()


def last_inputs(inputs: Tensor, starts: Tensor | None) -> Tensor:
    """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
    if starts is None:
        return inputs
    entries = inputs.shape[1]
    document = F.pad(starts.int().cumsum(1), (entries, 0))
    of_entry = document[:, document.shape[1] - entries :]
    return torch.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)


def long_conv(x: Tensor, f: Tensor) -> Tensor:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    S = x.shape[1]
    n = 1 << (2 * S - 1).bit_length()
    spectrum = torch.fft.rfft(f[:, :S].float().T, n=n, dim=0)
    y: Tensor = torch.fft.irfft(torch.fft.rfft(x.float(), n=n, dim=1) * spectrum, n=n, dim=1)
    return y[:, :S].to(x.dtype)


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


def activate(x: Tensor, activation: str) -> Tensor:
    """Return act(x)."""
    return _ACTIVATIONS[known(activation)](x)


def glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return act(gate) * up."""
    return _ACTIVATIONS[known(activation)](gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return F.silu(gate) * up


def soft_cap(x: Tensor, c: float) -> Tensor:
    """Return c * tanh(x / c)."""
    return c * torch.tanh(x / c)


def head_norm_gate(h: Tensor, o: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head."""
    normed = F.layer_norm(h.float(), h.shape[-1:], eps=eps).to(o.dtype)
    return torch.sigmoid(o) * (w * normed.reshape(o.shape))


def head_norm_skip_gate(
    h: Tensor, c: Tensor, z: Tensor, w: Tensor, skip: Tensor, eps: float
) -> Tensor:
    """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head."""
    normed = F.layer_norm(h.float(), h.shape[-1:], eps=eps).to(z.dtype)
    return (w * normed.reshape(z.shape) + skip * c) * F.silu(z)


def capped_cross_entropy(
    raw_logits: Tensor, labels: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    logits = raw_logits.float()
    if cap is not None:
        logits = soft_cap(logits, cap)
    scored = labels != -100
    target = torch.where(scored, labels, 0).long()
    nats = torch.logsumexp(logits, -1) - logits.gather(-1, target[:, None])[:, 0]
    return (nats * scored).sum(), scored.sum()
