"""The mLSTM cell as launches of its Metal kernels, for arrays of any engine.

`models/ops/metal/ops_mlx.py` and `models/ops/metal/ops_torch.py` make it differentiable.
"""

from collections.abc import Mapping
from typing import Any

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels.mlstm import forward_launches
from mlxhog.metal.kernels.mlstm_backward import backward_launches
from mlxhog.metal.kernels.mlstm_shape import LONGEST_CHUNK

INPUTS = ("q", "k", "v", "i", "f", "C0", "n0", "m0")
"""Of the cell, in order; the last three are the state before the first position."""

RESULTS = ("h", "C", "n", "m", "b", "den", "M")
"""Of `forward`: the output, the states around every chunk, and what else `backward` needs."""

GRADIENTS = ("dq", "dk", "dv", "di", "db", "dC", "dn", "dM")
"""Of `backward`, still to be put together."""


def chunk_of(chunk_size: int, S: int) -> int:
    """Return the positions of a chunk: as asked for, where the sequence and the kernels allow."""
    return min(chunk_size, S, LONGEST_CHUNK)


def forward(
    engine: Engine, inputs: Mapping[str, Any], *, chunk: int, eps: float
) -> tuple[Any, ...]:
    """Run the cell over a sequence.

    Args:
        engine: whose arrays everything is.
        inputs: `INPUTS` by name; layouts as in `models/ops/kernels.py`, float32, row-major.
        chunk: from `chunk_of`.
        eps: added to the denominator.

    Returns:
        `RESULTS`, the shapes as in `metal/kernels/mlstm.py`.
    """
    x = dict(inputs)
    for launch in forward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in RESULTS)


def backward(
    engine: Engine, saved: Mapping[str, Any], *, chunk: int, eps: float
) -> tuple[Any, ...]:
    """Differentiate `forward` with the stabilisers held constant, and h by its stabiliser M.

    Args:
        engine: as in `forward`.
        saved: q, k, v, i and `RESULTS` by name, the gradient dh of h, and dC_last and dn_last of
            the state after the last position.
        chunk: as in `forward`.
        eps: as in `forward`.

    Returns:
        `GRADIENTS`: those of q, k, v, i; db (B, NH, S), of the sums of logsig(f) from the start of
        each chunk, as far as h depends on them; dC and dn of the states around every chunk; dM
        (B, NH, S). Through its last sum a chunk also has <C', dC'> + n'.dn' of the state after it.

        A state is the true one times exp(-m). So at fixed true states the last m has the gradient
        dm - <C, dC> - n.dn, which joins dM of the last position, and the first m has <C, dC> + n.dn
        on top of what comes back through M_t = max(logsig(f_t) + M_t-1, i_t).
    """
    x = dict(saved)
    for launch in backward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in GRADIENTS)
