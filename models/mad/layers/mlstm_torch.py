"""The mLSTM layer in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.mlstm import CELL_EPS, CHUNK_SIZE, MLSTM

State = tuple[Tensor, ...]
"""The last inputs of the convolution (B, k - 1, d), where there is one, and C (B, NH, DH, DH),
n (B, NH, DH), m (B, NH) of the cell, float32."""


def init_state(layer: MLSTM, d: int, B: int) -> State:
    """Return the state before the first token: zeros."""
    NH, DH = layer.heads, d // layer.heads
    inputs = (torch.zeros(B, layer.conv - 1, d),) if layer.conv else ()
    return *inputs, torch.zeros(B, NH, DH, DH), torch.zeros(B, NH, DH), torch.zeros(B, NH)


def forward(
    layer: MLSTM,
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
    q, k = run.ops.linears(c, [p["q_proj.weight"], p["k_proj.weight"]])
    names = ("v_proj", "ogate", "igate", "fgate")
    v, o, i, f = run.ops.linears(
        x, [p[f"{name}.weight"] for name in names], [p.get(f"{name}.bias") for name in names]
    )
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    cell = state and state[-3:]
    h, cell = run.ops.mlstm_cell(q, k, v, i, f, chunk_size=CHUNK_SIZE, eps=CELL_EPS, state=cell)
    y = run.ops.head_norm_gate(h, o, p["head_norm.weight"], cfg.norm_eps)
    (y,) = run.ops.linears(y, [p["out_proj.weight"]])
    return y, (*inputs, *cell)
