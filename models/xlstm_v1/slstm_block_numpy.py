"""The sLSTM block in float64 NumPy, with its gradient written by hand."""

from typing import Any

from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.reference.layers_numpy import Back, Grads, Params, chain
from mlxhog.models.ops.reference.mlstm_numpy import Float
from mlxhog.models.ops.reference.slstm_numpy import slstm_cell
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.models.xlstm_v1.layers_numpy import block_diagonal, conv, drop, ffn, norm

State = tuple[Float, ...]
"""The last inputs of the convolution, where there is one, and h, c, n, m of the cell."""


def block(
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
    # The names of the first two gates are swapped in the package, see `__init__.py`.
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
