"""Gated DeltaNet in MLX."""

from collections.abc import Mapping

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gated_delta_net import CHUNK_SIZE, GatedDeltaNet

State = tuple[array, array]
"""S of every head (B, heads, dh, dh), and the last inputs of the convolution (B, k - 1, 3 d)."""


def init_state(layer: GatedDeltaNet, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    dh = d // layer.heads
    return mx.zeros((B, layer.heads, dh, dh)), mx.zeros((B, layer.conv - 1, 3 * d))


def forward(
    layer: GatedDeltaNet,
    cfg: MADConfig,
    p: Mapping[str, array],
    x: array,
    state: State | None,
    run: Pass[array],
) -> tuple[array, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    dh = d // layer.heads
    cell, conv = (None, None) if state is None else state
    names = ("qkv_proj", "g_proj", "b_proj", *(("a_proj",) if layer.decay else ()))
    mixed, g, b, *a = run.ops.linears(x, [p[f"{name}.weight"] for name in names])
    taps = p["conv.weight"]
    mixed, conv = run.ops.causal_conv(
        mixed, taps, mx.zeros_like(taps[:, 0, 0]), state=conv, silu=True
    )
    q, k, v = (mixed[..., i * d : (i + 1) * d].reshape(B, S, layer.heads, dh) for i in range(3))
    # An RMSNorm makes heads of length sqrt(dh) wherever they are longer than its eps.
    unit = mx.full(dh, dh**-0.5)
    q = run.ops.rms_norm(q, unit * dh**-0.5, cfg.norm_eps)
    k = run.ops.rms_norm(k, unit, cfg.norm_eps)
    beta = run.ops.activate(b.astype(mx.float32), "sigmoid")
    if layer.decay:
        dt = run.ops.activate(a[0].astype(mx.float32) + p["dt_bias"], "softplus")
        log_decay = -mx.exp(p["A_log"]) * dt
    else:
        log_decay = mx.zeros_like(beta)
    h, cell = run.ops.delta_cell(q, k, v, log_decay, beta, chunk_size=CHUNK_SIZE, state=cell)
    h = run.ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
    (y,) = run.ops.linears(run.ops.swiglu(g, h.reshape(B, S, d)), [p["out_proj.weight"]])
    return y, (cell, conv)
