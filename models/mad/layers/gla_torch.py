"""Gated linear attention in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.gla import CHUNK_SIZE, GLA, SLOWNESS

State = tuple[Tensor]
"""S of every head, (B, heads, dh, dh) float32."""


def init_state(layer: GLA, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    dh = d // layer.heads
    return (torch.zeros(B, layer.heads, dh, dh),)


def forward(
    layer: GLA,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    names = ("q_proj", "k_proj", "v_proj", "g_proj", "decay_down")
    q, k, v, g, low = run.ops.linears(x, [p[f"{name}.weight"] for name in names])
    (gate,) = run.ops.linears(low, [p["decay_up.weight"]], [p["decay_up.bias"]])
    log_alpha = run.ops.activate(-gate.float(), "softplus") / -SLOWNESS
    q, k, v, log_alpha = (
        y.reshape(B, S, layer.heads, d // layer.heads) for y in (q, k, v, log_alpha)
    )
    h, last = run.ops.decay_cell(
        q,
        k,
        v,
        log_alpha,
        scale=q.shape[-1] ** -0.5,
        chunk_size=CHUNK_SIZE,
        state=state and state[0],
    )
    h = run.ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
    (y,) = run.ops.linears(run.ops.swiglu(g, h.reshape(B, S, d)), [p["out_proj.weight"]])
    return y, (last,)
