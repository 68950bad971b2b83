"""The plain operators in MLX; `kernels.py` says what each promises.

The cells are in `mlstm_mlx.py` and `recurrences_mlx.py`.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.activations import known
from mlxhog.models.ops.reference.mlstm_mlx import mlstm_cell as mlstm_cell
from mlxhog.models.ops.reference.quantized_mlx import Quantized
from mlxhog.models.ops.reference.recurrences_mlx import decay_cell as decay_cell
from mlxhog.models.ops.reference.recurrences_mlx import delta_cell as delta_cell
from mlxhog.models.ops.reference.recurrences_mlx import selective_scan as selective_scan
from mlxhog.models.ops.reference.recurrences_mlx import slstm_cell as slstm_cell

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


def causal_conv(
    x: array,
    w: array,
    b: array,
    *,
    state: array | None = None,
    starts: array | None = None,
    silu: bool,
) -> tuple[array, array]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, C = x.shape
    K = w.shape[-1]
    past = mx.zeros((B, K - 1, C)) if state is None else state
    inputs = mx.concatenate([past.astype(mx.float32), x.astype(mx.float32)], 1)  # t at t + K - 1
    taps = [inputs[:, j : j + S] for j in range(K)]
    if starts is not None:
        back = positions_back(starts, K)[..., None]
        taps = [mx.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
    y = b.astype(mx.float32)
    for j, tap in enumerate(taps):
        y = y + w[:, 0, j].astype(mx.float32) * tap
    return (y * mx.sigmoid(y) if silu else y).astype(x.dtype), last_inputs(inputs[:, S:], starts)


def positions_back(starts: array, K: int) -> array:
    """Return how many positions before its own each may see, at most K - 1; (B, S) int32."""
    S = starts.shape[1]
    document = mx.pad(mx.cumsum(starts.astype(mx.int32), 1), [(0, 0), (K - 1, 0)])
    of_output = document[:, K - 1 :]
    back = mx.zeros_like(of_output)
    for j in range(K - 1):
        back += document[:, j : j + S] == of_output
    return back


def last_inputs(inputs: array, starts: array | None) -> array:
    """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
    if starts is None:
        return inputs
    entries = inputs.shape[1]
    document = mx.pad(mx.cumsum(starts.astype(mx.int32), 1), [(0, 0), (entries, 0)])
    of_entry = document[:, document.shape[1] - entries :]
    return mx.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)


def long_conv(x: array, f: array) -> array:
    """Convolve every channel of x (B, S, C) with its own taps f (C, J), J >= S."""
    S = x.shape[1]
    n = 1 << (2 * S - 1).bit_length()
    spectrum = mx.fft.rfft(f[:, :S].astype(mx.float32).T, n=n, axis=0)
    y = mx.fft.irfft(mx.fft.rfft(x.astype(mx.float32), n=n, axis=1) * spectrum, n=n, axis=1)
    return y[:, :S].astype(x.dtype)


def rope(x: array, base: float, offset: array | None = None) -> array:
    """Turn the two halves of every head of x (B, S, NH, DH) against each other."""
    turned = mx.fast.rope(
        x.swapaxes(1, 2),
        x.shape[-1],
        traditional=False,
        base=base,
        scale=1.0,
        offset=0 if offset is None else offset,
    )
    return turned.swapaxes(1, 2)


def attention(
    q: array, k: array, v: array, *, window: int | None = None, lengths: array | None = None
) -> array:
    """Attend from q (B, S, NH, DH) to the last keys up to each position of k, v (B, L, NH, DH)."""
    S, L = q.shape[1], k.shape[1]
    if window is not None and window >= L - 1:
        window = None
    if S == L and lengths is None:
        if window is None:
            return _attend(q, k, v, None)
        if S > 2 * window:
            return _in_blocks(q, k, v, window)
    key = mx.arange(L)
    query = key[L - S :, None]
    seen = key <= query
    if window is not None:
        seen = seen & (key >= query - window)
    if lengths is not None:
        seen = seen & (key >= L - lengths[:, None])[:, None, None]
    return _attend(q, k, v, seen)


def _attend(q: array, k: array, v: array, seen: array | None) -> array:
    """Attend where `seen` (..., S, L); None is causal with as many keys as queries."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    h = mx.fast.scaled_dot_product_attention(
        q, k, v, scale=q.shape[-1] ** -0.5, mask="causal" if seen is None else seen
    )
    return h.swapaxes(1, 2)


def _in_blocks(q: array, k: array, v: array, window: int) -> array:
    """Attend block by block to the own and the one before, in time that grows as S."""
    W = max(window, 1)
    B, S, NH, DH = q.shape
    NC = -(-S // W)
    rest = [(0, 0), (0, NC * W - S), (0, 0), (0, 0)]
    q, k, v = (mx.pad(x, rest).reshape(B, NC, W, NH, DH) for x in (q, k, v))
    before = [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]
    k, v = (mx.concatenate([mx.pad(x, before)[:, :-1], x], 2) for x in (k, v))
    key = mx.arange(-W, W)
    query = mx.arange(W)[:, None]
    seen = (key <= query) & (key >= query - window)
    in_sequence = (mx.arange(NC) > 0)[:, None, None] | (key >= 0)
    seen = mx.tile(seen & in_sequence, (B, 1, 1))[:, None]
    h = _attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), seen)
    return h.reshape(B, NC * W, NH, DH)[:, :S]


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
