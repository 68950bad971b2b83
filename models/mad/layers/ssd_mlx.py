"""State-space duality in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.ssd import CHUNK_SIZE, SSD

State = tuple[array, array]
"""S of every head (B, heads, N, inner / heads), and the last inputs of the convolution."""


def init_state(layer: SSD, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    inner, N = layer.expand * d, layer.states
    cell = mx.zeros((B, layer.heads, N, inner // layer.heads))
    return cell, mx.zeros((B, layer.conv - 1, inner + 2 * N))


def forward(
    layer: SSD,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    inner, N, heads = layer.expand * d, layer.states, layer.heads
    cell, conv = (None, None) if state is None else state
    names = ("z_proj", "xbc_proj", "dt_proj")
    z, mixed, dt = run.ops.linears(
        x, [p[f"{name}.weight"] for name in names], [None, None, p["dt_bias"]]
    )
    mixed, conv = run.ops.causal_conv(
        mixed, p["conv.weight"], p["conv.bias"], state=conv, silu=True
    )
    u = mixed[..., :inner].reshape(B, S, heads, inner // heads)
    Bt, Ct = (
        mx.broadcast_to(y[:, :, None], (B, S, heads, N))
        for y in (mixed[..., inner : inner + N], mixed[..., inner + N :])
    )
    dt = run.ops.activate(dt.astype(mx.float32), "softplus")[..., None]
    h, cell = run.ops.decay_cell(
        Ct,
        Bt,
        dt * u,
        -mx.exp(p["A_log"])[:, None] * dt,
        scale=1.0,
        chunk_size=CHUNK_SIZE,
        state=cell,
    )
    h = (h + p["D"][:, None] * u).reshape(B, S, inner)
    h = run.ops.rms_norm(run.ops.swiglu(z, h), p["out_norm.weight"], cfg.norm_eps)
    (y,) = run.ops.linears(h, [p["out_proj.weight"]])
    return y, (cell, conv)
