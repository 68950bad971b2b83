"""The sLSTM cell as launches of its Metal kernels, for arrays of any engine.

`slstm_mlx.py` and `slstm_torch.py` make it differentiable. A head has a group of threads, so at
most `MOST_UNITS` units; wider ones are refused by the launch, with the limit.
"""

from collections.abc import Mapping
from typing import Any

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels.slstm import slstm_backward, slstm_forward

INPUTS = ("G", "R", "bias", "h0", "c0", "n0", "m0", "starts")
"""Of the cell, in order: float32 but for starts, int32; layouts as in `slstm_forward`."""

STATES = ("h", "c", "n", "m")
"""Of `forward`: the state after every position, (B, S, NH, DH)."""

D_STATES = ("dh", "dc_last", "dn_last", "dm_last")
"""Gradients that `backward` takes: of every h, and of the last c, n and m."""

GRADIENTS = ("dG", "dh0", "dc0", "dn0", "dm0")
"""Of `backward`; those of R and bias are left to the caller, see `metal/kernels/slstm.py`."""


def forward(engine: Engine, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the cell over a sequence: `INPUTS` by name, row-major arrays of the engine -> `STATES`.

    Raises:
        ShapeError: shapes differ, or a head is too wide.
    """
    found = engine.run(slstm_forward(**inputs))
    return tuple(found[name] for name in STATES)


def backward(engine: Engine, saved: Mapping[str, Any]) -> tuple[Any, ...]:
    """Differentiate `forward`: `INPUTS`, `STATES` and `D_STATES` by name -> `GRADIENTS`."""
    found = engine.run(slstm_backward(**saved))
    return tuple(found[name] for name in GRADIENTS)
