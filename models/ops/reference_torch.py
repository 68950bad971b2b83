"""Plain ops in PyTorch; `kernels.py` says what each promises."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops.mlstm_torch import mlstm_cell as mlstm_cell


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Scale x to unit mean square over the last axis, then by w."""
    return F.rms_norm(x, x.shape[-1:], w, eps)


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if biases is None:
        biases = [None] * len(weights)
    return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))


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


def capped_cross_entropy(raw_logits: Tensor, labels: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats of the capped logits, and the number of labels not -100."""
    logits = soft_cap(raw_logits.float(), cap)
    scored = labels != -100
    target = torch.where(scored, labels, 0).long()
    nats = torch.logsumexp(logits, -1) - logits.gather(-1, target[:, None])[:, 0]
    return (nats * scored).sum(), scored.sum()
