"""The small layers of both kinds of blocks in float64 NumPy, by the names of their parameters.

They have the form that `models/ops/reference/layers_numpy.py` describes.
"""

from typing import Any

import numpy as np

from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.reference import layers_numpy
from mlxhog.models.ops.reference.layers_numpy import Back, Grads, Params, linear
from mlxhog.models.ops.reference.mlstm_numpy import Float
from mlxhog.models.xlstm_v1 import NORM_EPS, XLSTMV1Config


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
