"""The original xLSTM stack in float64 NumPy, with its gradient written by hand.

It is the reference of both twins: slow, since the cells run position by position, and meant for
comparison only. Layers have the form that `ops/reference/layers_numpy.py` describes. Names and
order as in the twins.
"""

from collections.abc import Sequence
from typing import Any

from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.reference.layers_numpy import Back, Grads, Params, chain
from mlxhog.models.ops.reference.mlstm_numpy import Float
from mlxhog.models.xlstm_v1 import (
    EMBEDDING,
    OUT_NORM,
    XLSTMV1Config,
    block_name,
    mlstm_block_numpy,
    slstm_block_numpy,
)
from mlxhog.models.xlstm_v1.layers_numpy import drop, norm

State = tuple[Float, ...]


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
        kind = slstm_block_numpy if layer in cfg.slstm_at else mlstm_block_numpy
        layer_state = state[layer] if state else None
        x, layer_state, back = kind.block(
            cfg, params, block_name(layer), x, layer_state, grads, run
        )
        new_state.append(layer_state)
        backs.append(back)
        run.note(x)
    if cfg.add_post_blocks_norm:
        x, back = norm(params, OUT_NORM, x, grads)
        backs.append(back)
        run.note(x)
    return x, new_state, chain(*backs)
