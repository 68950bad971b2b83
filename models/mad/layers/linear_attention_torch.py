"""Linear attention in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.linear_attention import CHUNK_SIZE, LinearAttention

State = tuple[Tensor]
"""S and z of every head side by side, (B, heads, dh, dh + 1) float32."""


def init_state(layer: LinearAttention, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    dh = d // layer.heads
    return (torch.zeros(B, layer.heads, dh, dh + 1),)


def forward(
    layer: LinearAttention,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    names = ("q_proj", "k_proj", "v_proj")
    q, k, v = (
        y.reshape(B, S, layer.heads, d // layer.heads)
        for y in run.ops.linears(x, [p[f"{name}.weight"] for name in names])
    )
    q, k = _features(p, "q_map", q, run), _features(p, "k_map", k, run)
    # A value of 1 beside the others sums up the keys themselves, and nothing is forgotten.
    ones = torch.ones_like(v[..., :1])
    h, last = run.ops.decay_cell(
        q,
        k,
        torch.cat([v, ones], -1),
        torch.zeros_like(ones),
        scale=1.0,
        chunk_size=CHUNK_SIZE,
        state=state and state[0],
    )
    h = h[..., :-1] / h[..., -1:].abs().clamp(min=layer.floor)
    (y,) = run.ops.linears(h.reshape(B, S, d), [p["out_proj.weight"]])
    return y, (last,)


def _features(p: Mapping[str, Tensor], name: str, x: Tensor, run: Pass[Tensor]) -> Tensor:
    """Return phi(x) of every head."""
    first, second = run.ops.linears(x, [p[f"{name}.w1.weight"], p[f"{name}.w2.weight"]])
    return first * second
