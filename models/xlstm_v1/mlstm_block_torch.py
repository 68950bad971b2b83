"""The mLSTM block in PyTorch."""

import torch
from torch import Tensor

from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.xlstm_v1 import CELL_EPS, NORM_EPS, XLSTMV1Config
from mlxhog.models.xlstm_v1.layers_torch import (
    Params,
    block_diagonals,
    conv,
    drop,
    halves,
    linears,
    norm,
)

State = tuple[Tensor, ...]
"""The last inputs of the convolution (B, K - 1, I), and C (B, NH, DK, DV), n (B, NH, DK),
m (B, NH) of the cell, float32."""


def init_state(cfg: XLSTMV1Config, B: int) -> State:
    """Return the state before the first token of B sequences: zeros."""
    layer, I = cfg.mlstm_layer, cfg.inner_dim  # noqa: E741  the spec's letter
    NH, DK = layer.num_heads, I // layer.num_heads
    return (
        torch.zeros(B, layer.conv1d_kernel_size - 1, I),
        torch.zeros(B, NH, DK, DK),
        torch.zeros(B, NH, DK),
        torch.zeros(B, NH),
    )


def block(
    cfg: XLSTMV1Config, params: Params, p: str, x: Tensor, state: State | None, run: Pass[Tensor]
) -> tuple[Tensor, State]:
    """The block with the prefix `p`: the mLSTM layer, normed and added to x (B, S, d)."""
    u = norm(params, f"{p}.xlstm_norm", x, run)
    y, state = mlstm_layer(cfg, params, f"{p}.xlstm", u, state, run)
    return x + y, state


def mlstm_layer(
    cfg: XLSTMV1Config, params: Params, p: str, u: Tensor, state: State | None, run: Pass[Tensor]
) -> tuple[Tensor, State]:
    """The cell between its projections, convolution and gate; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.mlstm_layer.num_heads, -1)
    a, z = halves(params, f"{p}.proj_up", u, run)
    c, inputs = conv(params, p, a, None if state is None else state[0], run)
    q, k = block_diagonals(params, (f"{p}.q_proj", f"{p}.k_proj"), c, run)
    (v,) = block_diagonals(params, (f"{p}.v_proj",), a, run)
    gates = (f"{p}.mlstm_cell.igate", f"{p}.mlstm_cell.fgate")
    i, f = linears(params, gates, torch.cat([q, k, v], -1), run)
    if run.starts is not None:
        f = torch.where(run.starts[..., None], CLOSED_GATE, f)
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    cell = None if state is None else state[1:]
    h, cell = run.ops.mlstm_cell(q, k, v, i, f, chunk_size=cfg.chunk_size, eps=CELL_EPS, state=cell)
    w, skip = 1.0 + params[f"{p}.mlstm_cell.outnorm.weight"], params[f"{p}.learnable_skip"]
    y = run.ops.head_norm_skip_gate(h, c, z, w, skip, NORM_EPS)
    (y,) = linears(params, (f"{p}.proj_down",), y, run)
    return drop(p, y, run), (inputs, *cell)
