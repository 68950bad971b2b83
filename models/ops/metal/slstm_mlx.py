"""The sLSTM cell as Metal kernels behind `mx.custom_function`; float32."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops.metal import slstm as metal_slstm
from mlxhog.models.ops.metal.call_mlx import enter, leave


def slstm_cell(
    run: Callable[..., Any],
    i: array,
    f: array,
    z: array,
    o: array,
    R: array,
    b: array,
    state: Sequence[array] | None,
    starts: array | None,
) -> tuple[array, tuple[array, array, array, array]]:
    """Run the cell over (B, S, NH, DH), any S, by `run` from `on_engine`."""
    B, S, NH, DH = i.shape
    G = mx.stack([x.astype(mx.float32) for x in (i, f, z, o)], 2)
    R, b = (x.astype(mx.float32) for x in (R, b))
    R, b = R.reshape(NH, 4, DH, DH), b.reshape(4, NH, DH)
    if state is None:
        zeros = mx.zeros((B, NH, DH))
        state = (zeros, zeros, zeros, zeros)
    if starts is None:
        starts = mx.zeros((B, S))
    h, c, n, m = run(G, R, b, *state, starts.astype(mx.int32))
    return h, (h[:, -1], c[:, -1], n[:, -1], m[:, -1])


def on_engine(engine: Engine) -> Callable[..., Any]:
    """`INPUTS` -> `STATES` of `slstm.py`; every h and the last c, n, m have a gradient."""

    def forward(*inputs: array) -> tuple[array, ...]:
        given = dict(zip(metal_slstm.INPUTS, enter(engine, inputs), strict=True))
        return leave(engine, metal_slstm.forward(engine, given))

    def backward(primals: Any, cotangents: Any, states: Any) -> Any:
        (_, _, _, h0, *_, starts), (h, *_) = primals, states
        dh, *d_states = cotangents
        names = (*metal_slstm.INPUTS, *metal_slstm.STATES, *metal_slstm.D_STATES)
        arrays = enter(engine, (*primals, *states, dh, *(x[:, -1] for x in d_states)))
        saved = dict(zip(names, arrays, strict=True))
        dG, *d_state = leave(engine, metal_slstm.backward(engine, saved))
        dR, db = _parameter_gradients(dG, h0, h, starts)
        return dG, dR, db, *d_state, mx.zeros_like(starts)

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def _parameter_gradients(dG: array, h0: array, h: array, starts: array) -> tuple[array, array]:
    """Gradients of R (NH, 4, DH, DH) and of the biases (4, NH, DH), summed over all positions."""
    B, S, _, NH, DH = dG.shape
    before = mx.concatenate([h0[:, None], h[:, :-1]], 1)
    before = mx.where(starts[:, :, None, None] != 0, 0.0, before)
    rows = dG.transpose(3, 2, 4, 0, 1).reshape(NH, 4 * DH, B * S)
    dR = rows @ before.transpose(2, 0, 1, 3).reshape(NH, B * S, DH)
    return dR.reshape(NH, 4, DH, DH), dG.sum((0, 1))
