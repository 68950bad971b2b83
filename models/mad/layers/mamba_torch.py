"""Mamba, the first, in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mamba import Mamba

State = tuple[Tensor, Tensor]
"""S of every channel (B, inner, N), and the last inputs of the convolution (B, k - 1, inner)."""


def init_state(layer: Mamba, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    inner = layer.expand * d
    return torch.zeros(B, inner, layer.states), torch.zeros(B, layer.conv - 1, inner)


def forward(
    layer: Mamba,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    d = x.shape[-1]
    inner, N, rank = layer.expand * d, layer.states, layer.dt_rank(d)
    cell, conv = (None, None) if state is None else state
    w, w_x = p["in_proj.weight"], p["x_proj.weight"]
    u, z = run.ops.linears(x, [w[:inner], w[inner:]])
    u, conv = run.ops.causal_conv(u, p["conv.weight"], p["conv.bias"], state=conv, silu=True)
    low, Bt, Ct = run.ops.linears(u, [w_x[:rank], w_x[rank : rank + N], w_x[rank + N :]])
    (dt,) = run.ops.linears(low, [p["dt_proj.weight"]], [p["dt_proj.bias"]])
    dt = run.ops.activate(dt.float(), "softplus")
    h, cell = run.ops.selective_scan(u, dt, -torch.exp(p["A_log"]), Bt, Ct, state=cell)
    h = run.ops.swiglu(z, h + p["D"] * u)
    (y,) = run.ops.linears(h, [p["out_proj.weight"]])
    return y, (cell, conv)
