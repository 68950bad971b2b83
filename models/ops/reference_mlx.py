"""Plain ops in MLX; `kernels.py` says what each promises."""

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.activations import known
from mlxhog.models.ops.conv_mlx import causal_conv as causal_conv

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0, where -inf would give NaN."""


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

_ACTIVATIONS: dict[str, Callable[[array], array]] = {
    "gelu": lambda x: 0.5 * x * (1 + mx.erf(x * 0.5**0.5)),
    "silu": lambda x: x * mx.sigmoid(x),
    "relu": lambda x: mx.maximum(x, 0),
    "relu^2": lambda x: mx.maximum(x, 0) ** 2,
    "sigmoid": mx.sigmoid,
    "selu": lambda x: _SELU_SCALE * mx.where(x > 0, x, _SELU_ALPHA * mx.expm1(mx.minimum(x, 0))),
}


def rms_norm(x: array, w: array, eps: float) -> array:
    """Scale x to unit mean square over the last axis, then by w."""
    return mx.fast.rms_norm(x, w, eps)


def layer_norm(x: array, w: array, eps: float) -> array:
    """Move x to mean 0 and variance 1 over the last axis, then scale by w."""
    normed = mx.fast.layer_norm(x.astype(mx.float32), w.astype(mx.float32), None, eps)
    return normed.astype(x.dtype)


def head_norm(h: array, w: array, eps: float) -> array:
    """Return w * LayerNorm(h), normalised over DH within each head and flat, (B, S, NH * DH)."""
    normed = mx.fast.layer_norm(h.astype(mx.float32), None, None, eps).flatten(-2)
    return (w.astype(mx.float32) * normed).astype(h.dtype)


def linears(
    x: array, weights: Sequence[array], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if biases is None:
        biases = [None] * len(weights)
    return tuple(
        x @ w.T if b is None else mx.addmm(b, x, w.T) for w, b in zip(weights, biases, strict=True)
    )


def block_diagonal(
    x: array, weights: Sequence[array], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if biases is None:
        biases = [None] * len(weights)
    outs = []
    for w, b in zip(weights, biases, strict=True):
        slices = x.reshape(-1, w.shape[0], w.shape[2]).swapaxes(0, 1)
        y = (slices @ w.swapaxes(1, 2)).swapaxes(0, 1).reshape(*x.shape[:-1], -1)
        outs.append(y if b is None else y + b)
    return tuple(outs)


def glu(gate: array, up: array, activation: str) -> array:
    """Return act(gate) * up."""
    return _ACTIVATIONS[known(activation)](gate) * up


def swiglu(gate: array, up: array) -> array:
    """Return silu(gate) * up."""
    return gate * mx.sigmoid(gate) * up


def soft_cap(x: array, c: float) -> array:
    """Return c * tanh(x / c)."""
    return c * mx.tanh(x / c)


def head_norm_gate(h: array, o: array, w: array, eps: float) -> array:
    """Return sigmoid(o) * (w * LayerNorm(h)), normalised over DV within each head."""
    normed = mx.fast.layer_norm(h.astype(mx.float32), None, None, eps).astype(o.dtype)
    return mx.sigmoid(o) * (w * normed.reshape(o.shape))


def head_norm_skip_gate(h: array, c: array, z: array, w: array, skip: array, eps: float) -> array:
    """Return (w * LayerNorm(h) + skip * c) * silu(z), normalised over DV within each head."""
    normed = mx.fast.layer_norm(h.astype(mx.float32), None, None, eps).astype(z.dtype)
    return (w * normed.reshape(z.shape) + skip * c) * z * mx.sigmoid(z)


def capped_cross_entropy(
    raw_logits: array, labels: array, cap: float | None
) -> tuple[array, array]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    logits = raw_logits.astype(mx.float32)
    if cap is not None:
        logits = soft_cap(logits, cap)
    scored = labels != -100
    target = mx.where(scored, labels, 0)
    nats = mx.logsumexp(logits, -1) - mx.take_along_axis(logits, target[:, None], -1)[:, 0]
    return (nats * scored).sum(), scored.sum()


def mlstm_cell(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    *,
    chunk_size: int,
    eps: float,
    state: Sequence[array] | None = None,
) -> tuple[array, tuple[array, array, array]]:
    """Run the cell over (B, S, NH, ...): one recurrent step where S = 1, else chunk by chunk."""
    B, S, NH, DK = q.shape
    q = q.astype(mx.float32) * DK**-0.5
    k, v, i, f = (x.astype(mx.float32) for x in (k, v, i, f))
    if state is None:
        C = mx.zeros((B, NH, DK, v.shape[-1]))
        n = mx.zeros((B, NH, DK))
        m = mx.zeros((B, NH))
    else:
        C, n, m = state
    if S == 1:
        return _step(q, k, v, i, f, C, n, m, eps)
    return _chunkwise(q, k, v, i, f, C, n, m, min(chunk_size, S), eps)


def _step(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    C: array,
    n: array,
    m: array,
    eps: float,
) -> tuple[array, tuple[array, array, array]]:
    """One step of the recurrence, S = 1; q is already scaled."""
    q, k, v, i, f = q[:, 0], k[:, 0], v[:, 0], i[:, 0], f[:, 0]
    lf = -mx.logaddexp(-f, 0)
    m_new = mx.stop_gradient(mx.maximum(lf + m, i))
    decay = mx.exp(lf + m - m_new)
    write = mx.exp(i - m_new)
    C = decay[..., None, None] * C + (write[..., None] * k)[..., None] * v[..., None, :]
    n = decay[..., None] * n + write[..., None] * k
    num = (q[..., None, :] @ C)[..., 0, :]
    den = (q * n).sum(-1)
    h = num / (mx.maximum(mx.abs(den), mx.exp(-m_new)) + eps)[..., None]
    return h[:, None], (C, n, m_new)


def _chunkwise(
    q: array,
    k: array,
    v: array,
    i: array,
    f: array,
    C: array,
    n: array,
    m: array,
    L: int,
    eps: float,
) -> tuple[array, tuple[array, array, array]]:
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
    b = mx.cumsum(-mx.logaddexp(-f, 0), -1)
    g = b[..., -1]
    u = i - b
    u_max = mx.cummax(mx.stop_gradient(u), -1)

    # The state before every chunk.
    ms = [mx.stop_gradient(m)]
    for g_c, u_max_c in zip(
        mx.unstack(mx.stop_gradient(g)), mx.unstack(u_max[..., -1]), strict=True
    ):
        ms.append(g_c + mx.maximum(ms[-1], u_max_c))
    m_all = mx.stack(ms)
    m, m_next = m_all[:-1], m_all[1:]
    decay = mx.exp(g + m - m_next)
    written = mx.exp(g[..., None] + u - m_next[..., None])[..., None] * k
    Cs, ns = [C], [n]
    C_add = written.swapaxes(-1, -2) @ v
    n_add = written.sum(-2)
    for F_c, C_c, n_c in zip(mx.unstack(decay), mx.unstack(C_add), mx.unstack(n_add), strict=True):
        Cs.append(F_c[..., None, None] * Cs[-1] + C_c)
        ns.append(F_c[..., None] * ns[-1] + n_c)

    # Every output: positions of its own chunk, and the state before the chunk.
    mask = mx.triu(mx.full((L, L), MASKED), 1)
    r = mx.maximum(m[..., None], u_max)
    A = (q @ k.swapaxes(-1, -2)) * mx.exp(u[..., None, :] - r[..., None] + mask)
    w = mx.exp(m[..., None] - r)
    num = w[..., None] * (q @ mx.stack(Cs[:-1])) + A @ v
    den = w * (q @ mx.stack(ns[:-1])[..., None])[..., 0] + A.sum(-1)
    h = num / (mx.maximum(mx.abs(den), mx.exp(-(b + r))) + eps)[..., None]
    h = h.transpose(1, 0, 3, 2, 4).flatten(1, 2)
    return h[:, :S], (Cs[-1], ns[-1], m_all[-1])


def _to_chunks(x: array, pad: int, value: float, L: int) -> array:
    """(B, S, NH, D) -> (NC, B, NH, L, D), padded on the right to whole chunks."""
    if pad:
        x = mx.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)], constant_values=value)
    B, S, NH, D = x.shape
    return x.reshape(B, S // L, L, NH, D).transpose(1, 0, 3, 2, 4)
