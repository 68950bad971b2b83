"""Plain ops in PyTorch; `kernels.py` says what each promises."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops.activations import known
from mlxhog.models.ops.conv_torch import causal_conv as causal_conv

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0, where -inf would give NaN."""


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "relu^2": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "selu": F.selu,
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
    return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))


def block_diagonal(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if biases is None:
        biases = [None] * len(weights)
    outs = []
    for w, b in zip(weights, biases, strict=True):
        slices = x.reshape(-1, w.shape[0], w.shape[2]).transpose(0, 1)
        y = (slices @ w.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)
        outs.append(y if b is None else y + b)
    return tuple(outs)


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


def mlstm_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Run the cell over (B, S, NH, ...): one recurrent step where S = 1, else chunk by chunk."""
    B, S, NH, DK = q.shape
    q = q.float() * DK**-0.5
    k, v, i, f = k.float(), v.float(), i.float(), f.float()
    if state is None:
        C = q.new_zeros(B, NH, DK, v.shape[-1])
        n = q.new_zeros(B, NH, DK)
        m = q.new_zeros(B, NH)
    else:
        C, n, m = state
    if S == 1:
        return _step(q, k, v, i, f, C, n, m, eps)
    return _chunkwise(q, k, v, i, f, C, n, m, min(chunk_size, S), eps)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor,
    n: Tensor,
    m: Tensor,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """One step of the recurrence, S = 1; q is already scaled."""
    q, k, v, i, f = q[:, 0], k[:, 0], v[:, 0], i[:, 0], f[:, 0]
    lf = F.logsigmoid(f)
    m_new = torch.maximum(lf + m, i).detach()
    decay = torch.exp(lf + m - m_new)
    write = torch.exp(i - m_new)
    C = decay[..., None, None] * C + (write[..., None] * k)[..., None] * v[..., None, :]
    n = decay[..., None] * n + write[..., None] * k
    num = (q[..., None, :] @ C)[..., 0, :]
    den = (q * n).sum(-1)
    h = num / (torch.maximum(den.abs(), torch.exp(-m_new)) + eps)[..., None]
    return h[:, None], (C, n, m_new)


def _chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor,
    n: Tensor,
    m: Tensor,
    L: int,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Chunks of L positions, in parallel inside and from chunk to chunk through the state.

    With b the sum of logsig(f) from the start of the chunk to t, g = b_L, u = i - b and M = b + r:
    r_t = max(m, max_{j<=t} u_j), so that D_tj - M_t = u_j - r_t. m and r are constants for the
    gradient, which is exact but for the eps term: h depends on the state, not on how it is scaled.
    """
    S = q.shape[1]
    pad = -S % L
    q, k, v = (_to_chunks(x, pad, 0.0, L) for x in (q, k, v))  # (NC, B, NH, L, DK or DV)
    i = _to_chunks(i[..., None], pad, -25.0, L)[..., 0]  # adds nothing
    f = _to_chunks(f[..., None], pad, 25.0, L)[..., 0]  # keeps the state
    b = torch.cumsum(F.logsigmoid(f), -1)
    g = b[..., -1]
    u = i - b
    u_max = torch.cummax(u.detach(), -1).values

    # The state before every chunk.
    ms = [m.detach()]
    for g_c, u_max_c in zip(g.detach().unbind(), u_max[..., -1].unbind(), strict=True):
        ms.append(g_c + torch.maximum(ms[-1], u_max_c))
    m_all = torch.stack(ms)
    m, m_next = m_all[:-1], m_all[1:]
    decay = torch.exp(g + m - m_next)
    written = torch.exp(g[..., None] + u - m_next[..., None])[..., None] * k
    Cs, ns = [C], [n]
    C_add = written.transpose(-1, -2) @ v
    n_add = written.sum(-2)
    for F_c, C_c, n_c in zip(decay.unbind(), C_add.unbind(), n_add.unbind(), strict=True):
        Cs.append(F_c[..., None, None] * Cs[-1] + C_c)
        ns.append(F_c[..., None] * ns[-1] + n_c)

    # Every output: positions of its own chunk, and the state before the chunk.
    mask = torch.full((L, L), MASKED, device=q.device).triu(1)
    r = torch.maximum(m[..., None], u_max)
    A = (q @ k.transpose(-1, -2)) * torch.exp(u[..., None, :] - r[..., None] + mask)
    w = torch.exp(m[..., None] - r)
    num = w[..., None] * (q @ torch.stack(Cs[:-1])) + A @ v
    den = w * (q @ torch.stack(ns[:-1])[..., None])[..., 0] + A.sum(-1)
    h = num / (torch.maximum(den.abs(), torch.exp(-(b + r))) + eps)[..., None]
    h = h.permute(1, 0, 3, 2, 4).flatten(1, 2)
    return h[:, :S], (Cs[-1], ns[-1], m_all[-1])


def _to_chunks(x: Tensor, pad: int, value: float, L: int) -> Tensor:
    """(B, S, NH, D) -> (NC, B, NH, L, D), padded on the right to whole chunks."""
    if pad:
        x = F.pad(x, (0, 0, 0, 0, 0, pad), value=value)
    B, S, NH, D = x.shape
    return x.reshape(B, S // L, L, NH, D).permute(1, 0, 3, 2, 4)
