"""Plain ops in PyTorch; `kernels.py` says what each promises."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops import arrays_torch
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.reference.attention_torch import attention as attention
from mlxhog.models.ops.reference.attention_torch import rope as rope
from mlxhog.models.ops.reference.conv_torch import causal_conv as causal_conv
from mlxhog.models.ops.reference.decay_torch import decay_cell as decay_cell
from mlxhog.models.ops.reference.delta_torch import delta_cell as delta_cell
from mlxhog.models.ops.reference.long_conv_torch import long_conv as long_conv
from mlxhog.models.ops.reference.mlstm_torch import mlstm_cell as mlstm_cell
from mlxhog.models.ops.reference.scan_torch import selective_scan as selective_scan
from mlxhog.models.ops.reference.slstm_torch import slstm_cell as slstm_cell

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
