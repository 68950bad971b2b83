"""The sLSTM block in MLX."""

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.xlstm_v1 import NORM_EPS, XLSTMV1Config
from mlxhog.models.xlstm_v1.layers_mlx import Params, block_diagonals, conv, drop, ffn, norm

State = tuple[array, ...]
"""The last inputs of the convolution (B, K - 1, d), where there is one, and h, c, n, m of the
cell, (B, NH, DH) each, float32."""


def init_state(cfg: XLSTMV1Config, B: int) -> State:
    """Return the state before the first token of B sequences: zeros."""
    layer, d = cfg.slstm_layer, cfg.embedding_dim
    K, NH = layer.conv1d_kernel_size, layer.num_heads
    inputs = (mx.zeros((B, K - 1, d)),) if K else ()
    return *inputs, *(mx.zeros((B, NH, d // NH)) for _ in range(4))


def block(
    cfg: XLSTMV1Config, params: Params, p: str, x: array, state: State | None, run: Pass[array]
) -> tuple[array, State]:
    """The block with the prefix `p`: the sLSTM layer and the feed-forward layer, if it has one."""
    u = norm(params, f"{p}.xlstm_norm", x, run)
    y, state = slstm_layer(cfg, params, f"{p}.xlstm", u, state, run)
    x = x + y
    if cfg.feedforward is not None:
        x = x + ffn(cfg, params, f"{p}.ffn", norm(params, f"{p}.ffn_norm", x, run), run)
    return x, state


def slstm_layer(
    cfg: XLSTMV1Config, params: Params, p: str, u: array, state: State | None, run: Pass[array]
) -> tuple[array, State]:
    """The cell between its convolution, gates and head norm; u and result (B, S, d)."""
    heads = (*u.shape[:2], cfg.slstm_layer.num_heads, -1)
    c, inputs = u, list[array]()
    if cfg.slstm_layer.conv1d_kernel_size:
        c, last = conv(params, p, u, None if state is None else state[0], run)
        inputs.append(last)
    # The names of these two gates are swapped in the package, see `__init__.py`.
    i, f = block_diagonals(params, (f"{p}.fgate", f"{p}.igate"), c, run)
    z, o = block_diagonals(params, (f"{p}.zgate", f"{p}.ogate"), u, run)
    i, f, z, o = i.reshape(heads), f.reshape(heads), z.reshape(heads), o.reshape(heads)
    R, b = params[f"{p}.slstm_cell._recurrent_kernel_"], params[f"{p}.slstm_cell._bias_"]
    cell = None if state is None else state[-4:]
    h, cell = run.ops.slstm_cell(i, f, z, o, R, b, state=cell, starts=run.starts)
    w = params.get(f"{p}.group_norm.weight")
    scale = mx.ones_like(u[0, 0]) if w is None else 1.0 + w
    return run.ops.head_norm(drop(p, h.astype(u.dtype), run), scale, NORM_EPS), (*inputs, *cell)
