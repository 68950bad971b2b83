"""The original xLSTM stack in float64 NumPy, with its gradient written by hand.

It is the reference of `model.py`: slow, since the cells run position by position, and only for
comparison. Layers have the form of `ops/reference/layers_numpy.py`. Names and order are those of
`model.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.reference import layers_numpy
from mlxhog.models.ops.reference.layers_numpy import (
    Back,
    Grads,
    Params,
    activation,
    chain,
    linear,
)
from mlxhog.models.ops.reference.mlstm_numpy import Float, recurrent
from mlxhog.models.ops.reference.recurrences_numpy import slstm_cell
from mlxhog.models.xlstm_v1.config import XLSTMV1Config
from mlxhog.models.xlstm_v1.model import CELL_EPS, EMBEDDING, NORM_EPS, OUT_NORM, block_name

State = tuple[Float, ...]
"""Of one block, as in `model.py`."""


def blocks(
    cfg: XLSTMV1Config,
    params: Params,
    x: Float,
    state: Sequence[State] | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, list[State], Back]:
    """From the embedded tokens (B, S, d) to the final norm, the new state, and the way back."""
    x, back = drop(EMBEDDING, x, run)
    new_state, backs = [], [back]
    for layer in range(cfg.num_blocks):
        block = slstm_block if layer in cfg.slstm_at else mlstm_block
        layer_state = state[layer] if state else None
        x, layer_state, back = block(cfg, params, block_name(layer), x, layer_state, grads, run)
        new_state.append(layer_state)
        backs.append(back)
        run.note(x)
    if cfg.add_post_blocks_norm:
        x, back = norm(params, OUT_NORM, x, grads)
        backs.append(back)
        run.note(x)
    return x, new_state, chain(*backs)


def mlstm_block(
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


def slstm_block(
    cfg: XLSTMV1Config,
    params: Params,
    p: str,
    x: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """The block with the prefix `p`: the sLSTM layer and the feed-forward layer, if it has one."""
    u, back_norm = norm(params, f"{p}.xlstm_norm", x, grads)
    y, state, back_layer = slstm_layer(cfg, params, f"{p}.xlstm", u, state, grads, run)
    x = x + y
    if cfg.feedforward is None:
        return x, state, lambda dx: dx + back_norm(back_layer(dx))
    u, back_ffn_norm = norm(params, f"{p}.ffn_norm", x, grads)
    y, back_ffn = ffn(cfg, params, f"{p}.ffn", u, grads, run)

    def back(dx: Float) -> Float:
        dx = dx + back_ffn_norm(back_ffn(dx))
        return dx + back_norm(back_layer(dx))

    return x + y, state, back


def slstm_layer(
    cfg: XLSTMV1Config,
    params: Params,
    p: str,
    u: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """The cell between its convolution, gates and head norm; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.slstm_layer.num_heads, -1)
    c, inputs, back_conv = u, list[Float](), chain()
    if cfg.slstm_layer.conv1d_kernel_size:
        c, last, back_conv = conv(params, p, u, None if state is None else state[0], grads, run)
        inputs.append(last)
    # The names of the first two gates are swapped in the package, see `model.py`.
    i, back_i = block_diagonal(params, f"{p}.fgate", c, grads)
    f, back_f = block_diagonal(params, f"{p}.igate", c, grads)
    z, back_z = block_diagonal(params, f"{p}.zgate", u, grads)
    o, back_o = block_diagonal(params, f"{p}.ogate", u, grads)
    R, b = f"{p}.slstm_cell._recurrent_kernel_", f"{p}.slstm_cell._bias_"
    i, f, z, o = (gate.reshape(heads) for gate in (i, f, z, o))
    cell = None if state is None else state[-4:]
    cell, back_cell = slstm_cell(i, f, z, o, params[R], params[b], state=cell, starts=run.starts)
    h, back_drop = drop(p, cell[0], run)
    y, back_norm = norm(params, f"{p}.group_norm", h, grads)

    def back(dy: Float) -> Float:
        *gates, grads[R], grads[b], _, _, _, _ = back_cell(back_drop(back_norm(dy)))
        di, df, dz, do = (gate.reshape(u.shape) for gate in gates)
        return back_conv(back_i(di) + back_f(df)) + back_z(dz) + back_o(do)

    return y, (*inputs, *(part[:, -1] for part in cell)), back


def norm(params: Params, name: str, x: Float, grads: Grads) -> tuple[Float, Back]:
    """LayerNorm over the last axis with the scale 1 + `name`, or without scale if it has none.

    For a norm per head, x is (B, S, NH, DH) and the result (B, S, NH * DH).
    """
    unit, back_unit = layers_numpy.layer_norm(x, NORM_EPS)
    unit = unit.reshape(*x.shape[:2], -1)
    w = params.get(f"{name}.weight")
    scale = 1.0 if w is None else 1.0 + w

    def back(dy: Float) -> Float:
        if w is not None:
            grads[f"{name}.weight"] = (dy * unit).sum((0, 1))
        return back_unit((dy * scale).reshape(x.shape))

    return unit * scale, back


def block_diagonal(params: Params, name: str, x: Float, grads: Grads) -> tuple[Float, Back]:
    """The block-diagonal map `name`, and its bias if it has one; (B, S, in) -> (B, S, out)."""
    b = params.get(f"{name}.bias")
    y, back_arrays = layers_numpy.block_diagonal(x, params[f"{name}.weight"], b)

    def back(dy: Float) -> Float:
        dx, grads[f"{name}.weight"], db = back_arrays(dy)
        if b is not None:
            grads[f"{name}.bias"] = db
        return dx

    return y, back


def conv(
    params: Params, p: str, x: Float, state: Float | None, grads: Grads, run: Pass[Any]
) -> tuple[Float, Float, Back]:
    """The causal convolution of x (B, S, C) through silu, and the inputs the next one needs."""
    w, b = f"{p}.conv1d.conv.weight", f"{p}.conv1d.conv.bias"
    y, last, back_arrays = layers_numpy.causal_conv(
        x, params[w], params[b], state=state, starts=run.starts, silu=True
    )

    def back(dy: Float) -> Float:
        dx, grads[w], grads[b], _ = back_arrays(dy, None)
        return dx

    return y, last, back


def drop(site: str, x: Float, run: Pass[Any]) -> tuple[Float, Back]:
    """Dropout at `site`, where this pass has a mask for it."""
    mask = None if run.masks is None else run.masks.get(site)
    scale = 1.0 if mask is None else mask.astype(float).reshape(x.shape)
    return x * scale, lambda dy: dy * scale


def ffn(
    cfg: XLSTMV1Config, params: Params, p: str, u: Float, grads: Grads, run: Pass[Any]
) -> tuple[Float, Back]:
    """The gated feed-forward layer; u and result (B, S, d)."""
    assert cfg.feedforward is not None
    gate_up, back_up = linear(params, f"{p}.proj_up", u, grads)
    gate, up = np.split(gate_up, 2, -1)
    y, back_glu = layers_numpy.glu(gate, up, cfg.feedforward.act_fn)
    y, back_down = linear(params, f"{p}.proj_down", y, grads)
    y, back_drop = drop(p, y, run)

    def back(dy: Float) -> Float:
        return back_up(np.concatenate(back_glu(back_down(back_drop(dy))), -1))

    return y, back
