"""Plain ops in MLX; `kernels.py` says what each promises."""

from collections.abc import Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.mlstm_mlx import mlstm_cell as mlstm_cell


def rms_norm(x: array, w: array, eps: float) -> array:
    """Scale x to unit mean square over the last axis, then by w."""
    return mx.fast.rms_norm(x, w, eps)


def linears(
    x: array, weights: Sequence[array], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if biases is None:
        biases = [None] * len(weights)
    return tuple(
        x @ w.T if b is None else mx.addmm(b, x, w.T) for w, b in zip(weights, biases, strict=True)
    )


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


def capped_cross_entropy(raw_logits: array, labels: array, cap: float) -> tuple[array, array]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    logits = soft_cap(raw_logits.astype(mx.float32), cap)
    scored = labels != -100
    target = mx.where(scored, labels, 0)
    nats = mx.logsumexp(logits, -1) - mx.take_along_axis(logits, target[:, None], -1)[:, 0]
    return (nats * scored).sum(), scored.sum()
