"""Linear attention in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.linear_attention import CHUNK_SIZE, LinearAttention

State = tuple[array]
"""S and z of every head side by side, (B, heads, dh, dh + 1) float32."""


def init_state(layer: LinearAttention, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    dh = d // layer.heads
    return (mx.zeros((B, layer.heads, dh, dh + 1)),)


def forward(
    layer: LinearAttention,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    names = ("q_proj", "k_proj", "v_proj")
    q, k, v = (
        y.reshape(B, S, layer.heads, d // layer.heads)
        for y in run.ops.linears(x, [p[f"{name}.weight"] for name in names])
    )
    q, k = _features(p, "q_map", q, run), _features(p, "k_map", k, run)
    # A value of 1 beside the others sums up the keys themselves, and nothing is forgotten.
    ones = mx.ones_like(v[..., :1])
    h, last = run.ops.decay_cell(
        q,
        k,
        mx.concatenate([v, ones], -1),
        mx.zeros_like(ones),
        scale=1.0,
        chunk_size=CHUNK_SIZE,
        state=state and state[0],
    )
    h = h[..., :-1] / mx.maximum(mx.abs(h[..., -1:]), layer.floor)
    (y,) = run.ops.linears(h.reshape(B, S, d), [p["out_proj.weight"]])
    return y, (last,)


def _features(p: Mapping[str, array], name: str, x: array, run: Pass[array]) -> array:
    """Return phi(x) of every head."""
    first, second = run.ops.linears(x, [p[f"{name}.w1.weight"], p[f"{name}.w2.weight"]])
    return first * second
