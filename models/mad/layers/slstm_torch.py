"""The sLSTM layer in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.slstm import SLSTM

State = tuple[Tensor, ...]
"""The last inputs of the convolution (B, k - 1, d), where there is one, and h, c, n, m of the
cell, (B, NH, DH) each, float32."""


def init_state(layer: SLSTM, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    NH, DH = layer.heads, d // layer.heads
    inputs = (torch.zeros(B, layer.conv - 1, d),) if layer.conv else ()
    return *inputs, *(torch.zeros(B, NH, DH) for _ in range(4))


def forward(
    layer: SLSTM,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    heads = (*x.shape[:2], layer.heads, -1)
    c, inputs = x, list[Tensor]()
    if layer.conv:
        c, last = run.ops.causal_conv(
            x,
            p["conv.weight"],
            p["conv.bias"],
            state=None if state is None else state[0],
            silu=True,
        )
        inputs.append(last)
    i, f = run.ops.linears(c, [p["igate.weight"], p["fgate.weight"]])
    z, o = run.ops.linears(x, [p["zgate.weight"], p["ogate.weight"]])
    i, f, z, o = i.reshape(heads), f.reshape(heads), z.reshape(heads), o.reshape(heads)
    R, b = p["recurrent.weight"], p["recurrent.bias"]
    h, cell = run.ops.slstm_cell(i, f, z, o, R, b, state=state and state[-4:])
    y = run.ops.head_norm(h.to(x.dtype), p["head_norm.weight"], cfg.norm_eps)
    (y,) = run.ops.linears(y, [p["out_proj.weight"]])
    return y, (*inputs, *cell)
