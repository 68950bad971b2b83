"""xLSTM Large in float64 NumPy, with its gradient written by hand: the reference of `model.py`.

It is slow (the cell runs position by position) and only for comparison. Layers have the form of
`models/ops/reference/layers_numpy.py`. Names and order are those of `model.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.reference.layers_numpy import (
    Back,
    Grads,
    Params,
    chain,
    layer_norm,
    linear,
    sigmoid,
    soft_cap,
)
from mlxhog.models.ops.reference.mlstm_numpy import Float, State, recurrent
from mlxhog.models.xlstm_large.config import XLSTMLargeConfig
from mlxhog.models.xlstm_large.model import OUT_NORM, block_name


def blocks(
    cfg: XLSTMLargeConfig,
    params: Params,
    x: Float,
    state: Sequence[State] | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, list[State], Back]:
    """From the embedded tokens (B, S, d) to the final norm, the new state, and the way back."""
    new_state, backs = [], []
    for layer in range(cfg.num_hidden_layers):
        layer_state = state[layer] if state else None
        x, layer_state, back = block(cfg, params, layer, x, layer_state, grads, run)
        new_state.append(layer_state)
        backs.append(back)
        run.note(x)
    if cfg.add_out_norm:
        x, back = norm(cfg, params, OUT_NORM, x, grads)
        backs.append(back)
        run.note(x)
    return x, new_state, chain(*backs)


def block(
    cfg: XLSTMLargeConfig,
    params: Params,
    layer: int,
    x: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """Block `layer`: the mLSTM layer and the feed-forward layer, each normed and added to x."""
    p = block_name(layer)
    u, back_norm_mlstm = norm(cfg, params, f"{p}.norm_mlstm", x, grads)
    y, new_state, back_mlstm = mlstm_layer(cfg, params, f"{p}.mlstm_layer", u, state, grads, run)
    x = x + y
    u, back_norm_ffn = norm(cfg, params, f"{p}.norm_ffn", x, grads)
    y, back_ffn = ffn(params, f"{p}.ffn", u, grads)

    def back(dx: Float) -> Float:
        dx = dx + back_norm_ffn(back_ffn(dx))
        return dx + back_norm_mlstm(back_mlstm(dx))

    return x + y, new_state, back


def mlstm_layer(
    cfg: XLSTMLargeConfig,
    params: Params,
    p: str,
    u: Float,
    state: State | None,
    grads: Grads,
    run: Pass[Any],
) -> tuple[Float, State, Back]:
    """The mLSTM cell between its projections, gates and head norm; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.num_heads, -1)
    q, back_q = linear(params, f"{p}.q", u, grads)
    k, back_k = linear(params, f"{p}.k", u, grads)
    v, back_v = linear(params, f"{p}.v", u, grads)
    o, back_o = linear(params, f"{p}.ogate_preact", u, grads)
    i, back_i = linear(params, f"{p}.igate_preact", u, grads)
    f, back_f = linear(params, f"{p}.fgate_preact", u, grads)
    i, back_i_cap = soft_cap(i, cfg.gate_soft_cap)
    f, back_f_cap = soft_cap(f, cfg.gate_soft_cap)
    open_f = np.ones_like(f) if run.starts is None else 1.0 - run.starts[..., None]
    f = np.where(open_f, f, CLOSED_GATE)
    h, new_state, back_cell = recurrent(
        q.reshape(heads), k.reshape(heads), v.reshape(heads), i, f, eps=cfg.eps, state=state
    )
    normed, back_layer_norm = layer_norm(h, cfg.norm_eps)
    normed = normed.reshape(o.shape)
    w, b = params[f"{p}.multihead_norm.weight"], params.get(f"{p}.multihead_norm.bias")
    y = w * normed if b is None else w * normed + b
    gate = sigmoid(o)
    out, back_out = linear(params, f"{p}.out_proj", gate * y, grads)

    def back(dout: Float) -> Float:
        dgated = back_out(dout)
        dy = dgated * gate
        grads[f"{p}.multihead_norm.weight"] = (dy * normed).sum((0, 1))
        if b is not None:
            grads[f"{p}.multihead_norm.bias"] = dy.sum((0, 1))
        dh = back_layer_norm((dy * w).reshape(h.shape))
        dq, dk, dv, di, df, *_ = back_cell(dh)
        return (
            back_q(dq.reshape(q.shape))
            + back_k(dk.reshape(k.shape))
            + back_v(dv.reshape(v.shape))
            + back_o(dgated * y * gate * (1.0 - gate))
            + back_i(back_i_cap(di))
            + back_f(back_f_cap(df * open_f))
        )

    return out, new_state, back


def ffn(params: Params, p: str, u: Float, grads: Grads) -> tuple[Float, Back]:
    """The gated feed-forward layer; u and result (B, S, d)."""
    gate, back_gate = linear(params, f"{p}.proj_up_gate", u, grads)
    up, back_up = linear(params, f"{p}.proj_up", u, grads)
    sig = sigmoid(gate)
    y, back_down = linear(params, f"{p}.proj_down", gate * sig * up, grads)

    def back(dy: Float) -> Float:
        dhidden = back_down(dy)
        dgate = dhidden * up * sig * (1.0 + gate * (1.0 - sig))
        return back_gate(dgate) + back_up(dhidden * gate * sig)

    return y, back


def norm(
    cfg: XLSTMLargeConfig, params: Params, name: str, x: Float, grads: Grads
) -> tuple[Float, Back]:
    """RMSNorm with the scale `name`, and its bias if the model has one; (..., d)."""
    w, b = params[f"{name}.weight"], params.get(f"{name}.bias")
    inverse = 1.0 / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.norm_eps)
    unit = x * inverse

    def back(dy: Float) -> Float:
        grads[f"{name}.weight"] = (dy * unit).sum((0, 1))
        if b is not None:
            grads[f"{name}.bias"] = dy.sum((0, 1))
        dunit = dy * w
        dx: Float = inverse * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
        return dx

    return w * unit if b is None else w * unit + b, back
