"""Plain ops in MLX; `kernels.py` says what each promises."""

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.reference.attention_mlx import attention as attention
from mlxhog.models.ops.reference.attention_mlx import rope as rope
from mlxhog.models.ops.reference.conv_mlx import causal_conv as causal_conv
from mlxhog.models.ops.reference.decay_mlx import decay_cell as decay_cell
from mlxhog.models.ops.reference.delta_mlx import delta_cell as delta_cell
from mlxhog.models.ops.reference.long_conv_mlx import long_conv as long_conv
from mlxhog.models.ops.reference.mlstm_mlx import mlstm_cell as mlstm_cell
from mlxhog.models.ops.reference.quantized_mlx import Quantized
from mlxhog.models.ops.reference.scan_mlx import selective_scan as selective_scan
from mlxhog.models.ops.reference.slstm_mlx import slstm_cell as slstm_cell

xp = arrays_mlx

_ROOT_2_PI = 0.7978845608028654
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

_ACTIVATIONS: dict[str, Callable[[array], array]] = {
    "gelu": lambda x: 0.5 * x * (1 + mx.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + mx.tanh(_ROOT_2_PI * (x + 0.044715 * x**3))),
    "silu": lambda x: x * mx.sigmoid(x),
    "relu": lambda x: mx.maximum(x, 0),
    "relu^2": lambda x: mx.maximum(x, 0) ** 2,
    "sigmoid": mx.sigmoid,
    "selu": lambda x: _SELU_SCALE * mx.where(x > 0, x, _SELU_ALPHA * mx.expm1(mx.minimum(x, 0))),
    "softplus": lambda x: mx.logaddexp(x, 0),
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
    x: array, weights: Sequence[array | Quantized], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Return x W^T + b of every weight (out, in) and bias (out,) or None; x (..., in)."""
    if biases is None:
        biases = [None] * len(weights)
    return tuple(_linear(x, w, b) for w, b in zip(weights, biases, strict=True))


def _linear(x: array, w: array | Quantized, b: array | None) -> array:
    if isinstance(w, Quantized):
        return w.product(x) if b is None else w.product(x) + b
    y = (x.astype(w.dtype) @ w.T).astype(x.dtype)
    return y if b is None else y + b


def block_diagonal(
    x: array, weights: Sequence[array], biases: Sequence[array | None] | None = None
) -> tuple[array, ...]:
    """Map every slice of x by its block of each weight (G, out / G, in / G), then add a bias."""
    if biases is None:
        biases = [None] * len(weights)
    outs = []
    for w, b in zip(weights, biases, strict=True):
        slices = x.astype(w.dtype).reshape(-1, w.shape[0], w.shape[2]).swapaxes(0, 1)
        y = (slices @ w.swapaxes(1, 2)).swapaxes(0, 1).reshape(*x.shape[:-1], -1).astype(x.dtype)
        outs.append(y if b is None else y + b)
    return tuple(outs)


def activate(x: array, activation: str) -> array:
    """Return act(x)."""
    return _ACTIVATIONS[known(activation)](x)


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
