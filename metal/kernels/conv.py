"""Causal depthwise convolution, with SiLU or without, in one launch, and its gradient (`conv.h`).

x may begin with P inputs before the first position, which have no output: the last K - 1 of an
earlier piece of the sequence. Before them x is 0. `back` limits how many earlier positions each
position sees, so that documents packed into one sequence do not see each other. Gradients of
weights and bias are summed in a fixed order, blocks of positions first.

Source: the convolution in front of the cells of Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from typing import Any

from mlxhog.metal.kernel import MetalKernel, Size
from mlxhog.metal.kernels.family import Family, Numbers

BLOCK = 64  # kConvBlock


def _derived(n: Numbers) -> dict[str, int]:
    S, K = n["S"], n["K"] if "K" in n else n["T"] - 1
    P = n["P"] if "P" in n else max(n.get("R", S) - S, 0)
    return {"K": K, "P": P, "R": P + S, "NB": -(-S // BLOCK), "T": K + 1}


CONV = Family(
    header="conv.h",
    struct="ConvShape{B, S, CH, K, P}",
    shapes={
        "x": "B R CH real",  # R = P + S rows, of which the first P are no outputs
        "w": "CH 1 K",  # the last tap meets the position itself
        "bias": "CH",
        "back": "B S int32",  # how many positions before its own an output sees, if it has as many
        "y": "B S CH real",
        "dy": "B S CH real",
        "dpre": "B S CH",  # gradient before SiLU, or of y without it
        "dx": "B R CH real",
        "part": "B NB T CH",  # sums over NB blocks of 64 positions: T = K + 1 of taps, then bias
        "dw": "CH 1 K",
        "dbias": "CH",
    },
    derived=_derived,
)


def _kernel(name: str, inputs: str, outputs: str, grid: str, scalars: str = "") -> MetalKernel:
    """Declare a kernel with a thread for each value of three letters."""

    def threads(n: Numbers) -> Size:
        x, y, z = (n.get(letter, 1) for letter in grid.split())
        return x, y, z

    how: Any = {"grid": threads, "threadgroup": lambda n: (32, 8, 1), "rtol": 1e-5}
    return CONV.kernel(name, inputs, outputs, scalars, **how)


FORWARD = _kernel("conv_forward", "x w bias back", "y", "CH S B", "silu")
PRE = _kernel("conv_bwd_pre", "x w bias back dy", "dpre", "CH S B")
INPUT = _kernel("conv_bwd_input", "w back dpre", "dx", "CH R B")
PARTIAL = _kernel("conv_bwd_partial", "x back dpre", "part", "CH NB B")
FINAL = _kernel("conv_bwd_final", "part", "dw dbias", "CH T 1")

KERNELS = (FORWARD, PRE, INPUT, PARTIAL, FINAL)
