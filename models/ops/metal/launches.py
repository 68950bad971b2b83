"""The cells and the convolution as launches of their Metal kernels, for arrays of any engine.

`ops_mlx.py` and `ops_torch.py` make them differentiable. All arrays are the engine's own and
row-major, float32 unless said otherwise.
"""

from collections.abc import Mapping
from typing import Any

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels import conv as conv_kernels
from mlxhog.metal.kernels.mlstm import LONGEST_CHUNK, backward_launches, forward_launches
from mlxhog.metal.kernels.slstm import slstm_backward, slstm_forward

MLSTM_INPUTS = ("q", "k", "v", "i", "f", "C0", "n0", "m0")
"""Of the mLSTM cell, in order; the last three are the state before the first position."""

MLSTM_RESULTS = ("h", "C", "n", "m", "b", "den", "M")
"""Of `mlstm`: the output, the states around every chunk, and what else the gradient needs."""

MLSTM_SAVED = ("q", "k", "v", "i", *MLSTM_RESULTS, "dh", "dC_last", "dn_last")
"""What `mlstm_grad` takes: inputs, results, and the gradients of h and of the last C and n."""

MLSTM_GRADIENTS = ("dq", "dk", "dv", "di", "db", "dC", "dn", "dM")
"""Of `mlstm_grad`, still to be put together."""

SLSTM_INPUTS = ("G", "R", "bias", "h0", "c0", "n0", "m0", "starts")
"""Of the sLSTM cell, in order; starts is int32; layouts as in `slstm_forward`."""

SLSTM_STATES = ("h", "c", "n", "m")
"""Of `slstm`: the state after every position, (B, S, NH, DH)."""

SLSTM_SAVED = (*SLSTM_INPUTS, *SLSTM_STATES, "dh", "dc_last", "dn_last", "dm_last")
"""What `slstm_grad` takes: inputs, states, and the gradients of every h and the last c, n, m."""

SLSTM_GRADIENTS = ("dG", "dh0", "dc0", "dn0", "dm0")
"""Of `slstm_grad`; those of R and bias are left to the caller, see `metal/kernels/slstm.py`."""


def conv(engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, *, silu: bool) -> Any:
    """Convolve; arguments as of `conv_forward`.

    A state goes in front of x in `inputs`, where only the taps see it; documents come as how far
    back each position may see.

    Returns:
        y (B, S, CH).
    """
    return engine.run(conv_kernels.conv_forward(inputs, w, bias, back, silu=silu))["y"]


def conv_grad(
    engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, dy: Any, *, silu: bool
) -> tuple[Any, Any, Any]:
    """Differentiate `conv`.

    Returns:
        The gradients of inputs (B, P + S, CH), w and bias.
    """
    S = dy.shape[1]
    if silu:
        dpre = engine.run(conv_kernels.conv_bwd_pre(inputs, w, bias, back, dy))["dpre"]
    else:
        dpre = dy
    dx = engine.run(conv_kernels.conv_bwd_input(w, back, dpre, P=inputs.shape[1] - S))["dx"]
    part = engine.run(conv_kernels.conv_bwd_partial(inputs, back, dpre, K=w.shape[-1]))["part"]
    sums = engine.run(conv_kernels.conv_bwd_final(part, S=S))
    return dx, sums["dw"], sums["dbias"]


def chunk_of(chunk_size: int, S: int) -> int:
    """Return the positions of a chunk: as asked for, where the sequence and the kernels allow."""
    return min(chunk_size, S, LONGEST_CHUNK)


def mlstm(engine: Engine, inputs: Mapping[str, Any], *, chunk: int, eps: float) -> tuple[Any, ...]:
    """Run the mLSTM cell over a sequence.

    Args:
        engine: whose arrays everything is.
        inputs: `MLSTM_INPUTS` by name; layouts as in `models/ops/kernels.py`.
        chunk: from `chunk_of`.
        eps: added to the denominator.

    Returns:
        `MLSTM_RESULTS`, the shapes as in `metal/kernels/mlstm.py`.
    """
    x = dict(inputs)
    for launch in forward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in MLSTM_RESULTS)


def mlstm_grad(
    engine: Engine, saved: Mapping[str, Any], *, chunk: int, eps: float
) -> tuple[Any, ...]:
    """Differentiate `mlstm` with the stabilisers held constant, and h by its stabiliser M.

    Args:
        engine: as in `mlstm`.
        saved: `MLSTM_SAVED` by name.
        chunk: as in `mlstm`.
        eps: as in `mlstm`.

    Returns:
        `MLSTM_GRADIENTS`: those of q, k, v, i; db (B, NH, S), of the sums of logsig(f) from the
        start of each chunk, as far as h depends on them; dC and dn of the states around every
        chunk; dM (B, NH, S). Through its last sum a chunk also has <C', dC'> + n'.dn' of the state
        after it.

        A state is the true one times exp(-m). So at fixed true states the last m has the gradient
        dm - <C, dC> - n.dn, which joins dM of the last position, and the first m has <C, dC> + n.dn
        on top of what comes back through M_t = max(logsig(f_t) + M_t-1, i_t).
    """
    x = dict(saved)
    for launch in backward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in MLSTM_GRADIENTS)


def slstm(engine: Engine, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the sLSTM cell over a sequence: `SLSTM_INPUTS` by name -> `SLSTM_STATES`.

    A head has a group of threads, so at most `MOST_UNITS` units.

    Raises:
        ShapeError: shapes differ, or a head is too wide.
    """
    states = engine.run(slstm_forward(inputs))
    return tuple(states[name] for name in SLSTM_STATES)


def slstm_grad(engine: Engine, saved: Mapping[str, Any]) -> tuple[Any, ...]:
    """Differentiate `slstm`: `SLSTM_SAVED` by name -> `SLSTM_GRADIENTS`."""
    grads = engine.run(slstm_backward(saved))
    return tuple(grads[name] for name in SLSTM_GRADIENTS)
