"""The original xLSTM stack in MLX: the equations of this package, as functions of parameters.

`params` maps every name of `param_spec(cfg)` to a float32 array of that shape. All functions are
pure: they write no input.
"""

from collections.abc import Sequence

from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.xlstm_v1 import (
    EMBEDDING,
    OUT_NORM,
    XLSTMV1Config,
    block_name,
    mlstm_block_mlx,
    slstm_block_mlx,
)
from mlxhog.models.xlstm_v1.layers_mlx import Params, drop, norm

State = tuple[array, ...]
"""Of one block: `State` of mlstm_block_mlx or slstm_block_mlx."""


def init_state(cfg: XLSTMV1Config, B: int) -> list[State]:
    """Return the state before the first token of B sequences: zeros, one tuple per block."""
    return [
        slstm_block_mlx.init_state(cfg, B)
        if layer in cfg.slstm_at
        else mlstm_block_mlx.init_state(cfg, B)
        for layer in range(cfg.num_blocks)
    ]


def blocks(
    cfg: XLSTMV1Config,
    params: Params,
    x: array,
    state: Sequence[State] | None,
    run: Pass[array],
) -> tuple[array, list[State]]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    x = drop(EMBEDDING, x, run)
    new_state = []
    for layer in range(cfg.num_blocks):
        kind = slstm_block_mlx if layer in cfg.slstm_at else mlstm_block_mlx
        layer_state = state[layer] if state else None
        x, layer_state = kind.block(cfg, params, block_name(layer), x, layer_state, run)
        new_state.append(layer_state)
        run.note(x)
    if cfg.add_post_blocks_norm:
        x = norm(params, OUT_NORM, x, run)
        run.note(x)
    return x, new_state
