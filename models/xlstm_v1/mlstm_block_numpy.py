"""The mLSTM block in float64 NumPy, with its gradient written by hand."""

from typing import Any

import numpy as np

from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.reference.layers_numpy import Back, Grads, Params, activation, linear
from mlxhog.models.ops.reference.mlstm_numpy import Float, recurrent
from mlxhog.models.xlstm_v1 import CELL_EPS, XLSTMV1Config
from mlxhog.models.xlstm_v1.layers_numpy import block_diagonal, conv, drop, norm

State = tuple[Float, ...]
"""The last inputs of the convolution, and C, n, m of the cell."""


def block(
    cfg: XLSTMV1Config,
    params: Params,
    p: str,
    x: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """The block with the prefix `p`: the mLSTM layer, normed and added to x (B, S, d)."""
    u, back_norm = norm(params, f"{p}.xlstm_norm", x, grads)
    y, state, back_layer = mlstm_layer(cfg, params, f"{p}.xlstm", u, state, grads, run)
    return x + y, state, lambda dx: dx + back_norm(back_layer(dx))


def mlstm_layer(
    cfg: XLSTMV1Config,
    params: Params,
    p: str,
    u: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """The cell between its projections, convolution and gate; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.mlstm_layer.num_heads, -1)
    up, back_up = linear(params, f"{p}.proj_up", u, grads)
    a, z = np.split(up, 2, -1)
    c, inputs, back_conv = conv(params, p, a, None if state is None else state[0], grads, run)
    q, back_q = block_diagonal(params, f"{p}.q_proj", c, grads)
    k, back_k = block_diagonal(params, f"{p}.k_proj", c, grads)
    v, back_v = block_diagonal(params, f"{p}.v_proj", a, grads)
    qkv = np.concatenate([q, k, v], -1)
    i, back_i = linear(params, f"{p}.mlstm_cell.igate", qkv, grads)
    f, back_f = linear(params, f"{p}.mlstm_cell.fgate", qkv, grads)
    closed = np.zeros(f.shape, bool) if run.starts is None else run.starts[..., None]
    h, cell, back_cell = recurrent(
        q.reshape(heads),
        k.reshape(heads),
        v.reshape(heads),
        i,
        np.where(closed, CLOSED_GATE, f),
        eps=CELL_EPS,
        state=None if state is None else state[1:],
    )
    normed, back_outnorm = norm(params, f"{p}.mlstm_cell.outnorm", h, grads)
    skip = params[f"{p}.learnable_skip"]
    mixed = normed + skip * c
    gate, slope = activation("silu", z)
    y, back_down = linear(params, f"{p}.proj_down", mixed * gate, grads)
    y, back_drop = drop(p, y, run)

    def back(dy: Float) -> Float:
        dgated = back_down(back_drop(dy))
        dz = dgated * mixed * slope
        dmixed = dgated * gate
        grads[f"{p}.learnable_skip"] = (dmixed * c).sum((0, 1))
        dq, dk, dv, di, df, *_ = back_cell(back_outnorm(dmixed))
        dqkv = back_i(di) + back_f(np.where(closed, 0.0, df))
        dqkv = dqkv + np.concatenate([d.reshape(q.shape) for d in (dq, dk, dv)], -1)
        dq, dk, dv = np.split(dqkv, 3, -1)
        da = back_v(dv) + back_conv(back_q(dq) + back_k(dk) + dmixed * skip)
        return back_up(np.concatenate([da, dz], -1))

    return y, (inputs, *cell), back
