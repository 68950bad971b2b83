"""The sLSTM cell over a whole sequence in one launch, and its gradient in another (`slstm.h`).

Time is sequential, so a head of `T` sequences is one threadgroup, a thread per unit; a GPU allows
at most 1024. It reads the recurrent matrices once a step for all of its sequences; the header says
what limits their number. Adjacent threads read adjacent addresses of the matrices: forward
transposed, backward as they are. Their gradient and that of the bias are sums over all positions,
by one matrix product of the caller, in a fixed order:

    dR[:, g] = sum_t dG[t, g] h[t - 1]^T        dbias = sum_t dG[t]

with h[t - 1] = 0 where a document starts at t. R and bias are laid out as the xlstm package stores
them for the CPU; R_T has the last two axes of R exchanged. The forward pass keeps the
pre-activations of the gates, so that the backward pass does not multiply with R_T again.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels.family import Family, Numbers

MAX_UNITS = 1024  # of a head: threads of a threadgroup
SEQUENCES = (1, 2, 4, 8)
"""Sequences of a threadgroup, by instance of a kernel: its `T`."""
_MAX_FLOATS = 2048  # T DH: more have no room in threadgroup memory, nor their sums in registers
_STATE = ("h0", "c0", "n0", "m0")


def _derived(n: Numbers) -> Numbers:
    if n["DH"] > MAX_UNITS:
        raise ShapeError(
            f"sLSTM kernels: heads of {n['DH']} units, and a threadgroup has at most "
            f"{MAX_UNITS}; use more heads, or the framework's own operations"
        )
    return {}


def batch_sizes(DH: int) -> list[int]:
    """Return batch sizes, one for each kernel that heads of this width may need."""
    return [T for T in SEQUENCES if T * min(DH, MAX_UNITS) <= _MAX_FLOATS]


def _sequences(n: Numbers) -> int:
    """Return how many sequences share a threadgroup: no more than the batch fills."""
    fit = batch_sizes(n["DH"])
    return next((T for T in fit if T >= n["B"]), fit[-1])


SLSTM = Family(
    header="slstm.h",
    struct="SlstmShape<T>{B, S, NH, DH}",
    shapes={
        "G": "B S 4 NH DH",  # parts of the gates i, f, z, o from the inputs
        "R": "NH 4 DH DH",  # from the last index to the one before
        "R_T": "NH 4 DH DH",  # the other way round
        "bias": "4 NH DH",
        # before the first position; where n0 is 0 the stabilizer starts at the first input gate
        **dict.fromkeys(_STATE, "B NH DH"),
        "starts": "B S int32",  # not 0 where a document starts: the state before it is zero
        **dict.fromkeys(("h", "c", "n", "m"), "B S NH DH"),  # the state after every position
        "pre": "B S 4 NH DH",  # pre-activations of the gates
        "dh": "B S NH DH",  # gradient of h, that of the last state's h included
        **dict.fromkeys(("dc_last", "dn_last", "dm_last"), "B NH DH"),
        "dG": "B S 4 NH DH",
        **{f"d{name}": "B NH DH" for name in _STATE},
    },
    derived=_derived,
    instance=lambda n: str(_sequences(n)),
)
_DECLARED: dict[str, Any] = {
    "grid": lambda n: (n["DH"], -(-n["B"] // _sequences(n)) * n["NH"], 1),
    "threadgroup": lambda n: (n["DH"], 1, 1),
    "instances": tuple(map(str, SEQUENCES)),
    "uses_barriers": True,
    "rtol": 1e-5,
}
FORWARD = SLSTM.kernel(
    "slstm_forward", "G R_T bias h0 c0 n0 m0 starts", "h c n m pre",
    memory={"shared_h": f"{_MAX_FLOATS}"}, **_DECLARED,
)  # fmt: skip
BACKWARD = SLSTM.kernel(
    "slstm_backward", "R c0 n0 m0 starts c n m pre dh dc_last dn_last dm_last",
    "dG dh0 dc0 dn0 dm0", memory={"shared_dG": f"4 * {_MAX_FLOATS}"}, **_DECLARED,
)  # fmt: skip

KERNELS = (FORWARD, BACKWARD)
