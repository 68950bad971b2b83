"""The sLSTM cell over a whole sequence in one launch, and its gradient in another (`slstm.h`).

Time is sequential, so a head of a sequence is one group of threads, a thread per unit; a GPU allows
at most 1024. A group has threadgroup memory for the next number of units in `UNITS`. The recurrent
matrices are read from device memory, through its cache, neighbouring threads from neighbouring
addresses: forward transposed, backward as they are. Their gradient and that of the bias are sums
over all positions; the caller computes them by one matrix product, which adds in a fixed order:

    dR[:, g] = sum_t dG[t, g] h[t - 1]^T        dbias = sum_t dG[t]

with h[t - 1] = 0 where a document starts at t. R and bias are laid out as the xlstm package stores
them for the CPU; R_T has the last two axes of R exchanged. The forward pass keeps the
pre-activations of the gates, so that the backward pass does not multiply with R_T again. A launch
with other shapes than those in `SHAPES`, or with too wide heads, raises `ShapeError`.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.arguments import arrays, declare, launch

Array = NDArray[Any]
Arrays = Mapping[str, Any]
"""Arrays by name; those that a launch does not take are ignored."""

UNITS = (64, 256, 1024)
"""Units that a head may have, by instance of a kernel: the `T` of its threadgroup memory."""
MOST_UNITS = UNITS[-1]
_STATE = ("h0", "c0", "n0", "m0")
_EVERY = ("h", "c", "n", "m")
_LAST = ("dc_last", "dn_last", "dm_last")

SHAPES = {
    "G": "B S 4 NH DH",  # parts of the gates i, f, z, o from the inputs
    "R": "NH 4 DH DH",  # from the last index to the one before
    "R_T": "NH 4 DH DH",  # the other way round
    "bias": "4 NH DH",
    **dict.fromkeys(_STATE, "B NH DH"),  # before the first position; where n0 is 0 the stabiliser
    # starts at the first input gate
    "starts": "B S",  # int32, not 0 where a document starts: the state before it counts as zero
    **dict.fromkeys(_EVERY, "B S NH DH"),  # the state after every position
    "pre": "B S 4 NH DH",  # pre-activations of the gates
    "dh": "B S NH DH",  # gradient of h, that of the last state's h included
    **dict.fromkeys(_LAST, "B NH DH"),
    "dG": "B S 4 NH DH",
    **{f"d{name}": "B NH DH" for name in _STATE},
}
"""Shape of every array by its name, float32."""


def slstm_forward(x: Arrays) -> Launch:
    """Run the cell over a sequence: h, c, n and m after every position, and `pre`."""
    return _launch(FORWARD, x)


def slstm_backward(x: Arrays) -> Launch:
    """Differentiate `slstm_forward`, exactly: dG and the gradients of the first state."""
    return _launch(BACKWARD, x)


def _launch(kernel: Kernel, x: Arrays) -> Launch:
    B, S, _, NH, DH = x["G" if kernel is FORWARD else "pre"].shape
    if DH > MOST_UNITS:
        raise ShapeError(
            f"{kernel.name}: heads of {DH} units, and a group of threads has at most {MOST_UNITS}; "
            "use more heads, or the framework's own operations"
        )
    numbers = {"B": B, "S": S, "NH": NH, "DH": DH}
    one = launch(kernel, x, SHAPES, numbers, grid=(DH, B * NH, 1), group=(DH, 1, 1))
    return replace(one, instance=str(next(units for units in UNITS if units >= DH)))


_HEAD = {"NH": 2, "DH": 12}  # of samples


def _drawn(rng: np.random.Generator, names: Iterable[str], **letters: int) -> dict[str, Any]:
    """Random arrays by name, of the shapes in `SHAPES`."""
    sizes = {"4": 4, **letters}
    return {
        name: rng.standard_normal([sizes[word] for word in SHAPES[name].split()], np.float32)
        for name in names
    }


def sample_slstm(
    rng: np.random.Generator, *, B: int, S: int, NH: int, DH: int, fresh: bool, packed: bool = False
) -> dict[str, Any]:
    """Random arguments of `slstm_forward`, and R; a fresh state is zeros, packed are documents."""
    x = _drawn(rng, ("G", "R", "bias", *_STATE), B=B, S=S, NH=NH, DH=DH)
    x["R"] *= np.float32(DH**-0.5)
    x["R_T"] = np.ascontiguousarray(x["R"].swapaxes(2, 3))
    x["n0"] = 0.5 + np.abs(x["n0"])
    if fresh:
        x |= {name: np.zeros_like(x[name]) for name in _STATE}
    x["starts"] = (rng.random((B, S)) < (0.3 if packed else 0)).astype(np.int32)
    return x


def _sample_forward(rng: np.random.Generator, n: int) -> Launch:
    S = max(1, n // 48)
    return slstm_forward(sample_slstm(rng, B=2, S=S, **_HEAD, fresh=True, packed=True))


def _sample_backward(rng: np.random.Generator, n: int) -> Launch:
    x = dict(_sample_forward(rng, n).inputs)
    names = ("R", *_EVERY, "pre", "dh", *_LAST)
    x |= _drawn(rng, names, B=x["B"], S=x["S"], **_HEAD)
    x["n"] = 0.5 + np.abs(x["n"])
    return slstm_backward(x)


_STARTS = arrays("starts", "int32")

_DECLARED: dict[str, Any] = {
    "shape": "SlstmShape{B, S, NH, DH}",
    "instances": tuple(map(str, UNITS)),
    "lockstep": True,
    "rtol": 1e-5,
}
FORWARD = declare(
    "slstm_forward",
    "slstm.h",
    (*arrays("G R_T bias h0 c0 n0 m0"), *_STARTS),
    arrays("h c n m pre"),
    sample=_sample_forward,
    memory={"shared_h": "T"},
    **_DECLARED,
)
BACKWARD = declare(
    "slstm_backward",
    "slstm.h",
    (*arrays("R c0 n0 m0"), *_STARTS, *arrays("c n m pre dh dc_last dn_last dm_last")),
    arrays("dG dh0 dc0 dn0 dm0"),
    sample=_sample_backward,
    memory={"shared_dG": "4 * T"},
    **_DECLARED,
)

KERNELS = (FORWARD, BACKWARD)
