"""The sLSTM cell over a whole sequence in one launch, and its gradient in another (`slstm.h`).

Time is sequential, so a head of a sequence is a group of threads, one per unit, of which a GPU has
at most 1024. The recurrent matrices are read from device memory, where the cache holds them. Their
gradient and that of the bias are sums over all positions, and left to the caller as one matrix
product, which adds in a fixed order:

    dR[:, g] = sum_t dG[t, g] h[t - 1]^T        dbias = sum_t dG[t]

with h[t - 1] = 0 where a document starts at t. R and bias are laid out as the xlstm package stores
them for the CPU.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import slstm_reference as reference
from mlxhog.metal.kernels.arguments import arrays, check, sizes

MOST_UNITS = 1024


def slstm_forward(
    G: Any, R: Any, bias: Any, h0: Any, c0: Any, n0: Any, m0: Any, starts: Any
) -> Launch:
    """Run the cell over a sequence.

    Args:
        G: (B, S, 4, NH, DH) float32, what the inputs give to the gates i, f, z, o.
        R: (NH, 4, DH, DH), from the last index to the one before.
        bias: (4, NH, DH).
        h0: (B, NH, DH), the state before the first position; DH at most 1024.
        c0: as h0.
        n0: as h0; where it is 0 the stabiliser starts at the first input gate.
        m0: as h0.
        starts: (B, S) int32, not 0 where a document starts: the state before it counts as zero.

    Returns:
        A launch with the outputs h, c, n and m after every position, (B, S, NH, DH).

    Raises:
        ShapeError: shapes differ, or a head is too wide.
    """
    given = {"G": G, "R": R, "bias": bias, "h0": h0, "c0": c0, "n0": n0, "m0": m0}
    given["starts"] = starts
    B, S, _, NH, DH = G.shape
    _check("slstm_forward", given, {})
    return Launch(
        kernel=FORWARD,
        inputs={**given, "B": B, "S": S, "NH": NH, "DH": DH},
        outputs=dict.fromkeys("hcnm", (B, S, NH, DH)),
        grid=(DH, B * NH, 1),
        group=(DH, 1, 1),
    )


def slstm_backward(
    G: Any,
    R: Any,
    bias: Any,
    h0: Any,
    c0: Any,
    n0: Any,
    m0: Any,
    starts: Any,
    h: Any,
    c: Any,
    n: Any,
    m: Any,
    dh: Any,
    dc_last: Any,
    dn_last: Any,
    dm_last: Any,
) -> Launch:
    """Differentiate `slstm_forward`, exactly.

    Args:
        G: as in `slstm_forward`.
        R: likewise.
        bias: likewise.
        h0: likewise.
        c0: likewise.
        n0: likewise.
        m0: likewise.
        starts: likewise.
        h: from `slstm_forward`.
        c: likewise.
        n: likewise.
        m: likewise.
        dh: (B, S, NH, DH), gradient of h, that of the last state's h included.
        dc_last: (B, NH, DH), gradient of the last c.
        dn_last: (B, NH, DH), gradient of the last n.
        dm_last: (B, NH, DH), gradient of the last m.

    Returns:
        A launch with the outputs dG, shaped as G, and dh0, dc0, dn0, dm0, (B, NH, DH).

    Raises:
        ShapeError: shapes differ, or a head is too wide.
    """
    given = {"G": G, "R": R, "bias": bias, "h0": h0, "c0": c0, "n0": n0, "m0": m0}
    given |= {"starts": starts, "h": h, "c": c, "n": n, "m": m, "dh": dh}
    given |= {"dc_last": dc_last, "dn_last": dn_last, "dm_last": dm_last}
    B, S, _, NH, DH = G.shape
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("h", "c", "n", "m", "dh"), (B, S, NH, DH))
    wanted |= dict.fromkeys(("dc_last", "dn_last", "dm_last"), (B, NH, DH))
    _check("slstm_backward", given, wanted)
    return Launch(
        kernel=BACKWARD,
        inputs={**given, "B": B, "S": S, "NH": NH, "DH": DH},
        outputs={"dG": (B, S, 4, NH, DH), **dict.fromkeys(_OF_START, (B, NH, DH))},
        grid=(DH, B * NH, 1),
        group=(DH, 1, 1),
    )


def _check(kernel: str, given: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> None:
    B, S, _, NH, DH = given["G"].shape
    if DH > MOST_UNITS:
        raise ShapeError(
            f"{kernel}: heads of {DH} units, and a group of threads has at most {MOST_UNITS}; "
            "use more heads, or the framework's own operations"
        )
    own: dict[str, tuple[int, ...]] = {"G": (B, S, 4, NH, DH), "R": (NH, 4, DH, DH)}
    own |= {"bias": (4, NH, DH), "starts": (B, S)}
    check(kernel, given, own | dict.fromkeys(("h0", "c0", "n0", "m0"), (B, NH, DH)) | wanted)


def sample_slstm(
    rng: np.random.Generator, *, B: int, S: int, NH: int, DH: int, fresh: bool, packed: bool = False
) -> dict[str, Any]:
    """Random arguments of `slstm_forward`; a fresh state is zeros, packed are several documents."""
    shapes: dict[str, tuple[int, ...]] = {"G": (B, S, 4, NH, DH), "R": (NH, 4, DH, DH)}
    shapes["bias"] = (4, NH, DH)
    shapes |= dict.fromkeys(("h0", "c0", "n0", "m0"), (B, NH, DH))
    x: dict[str, Any] = {
        name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    x["R"] *= np.float32(DH**-0.5)
    x["n0"] = 0.5 + np.abs(x["n0"])
    if fresh:
        x |= {name: np.zeros_like(x[name]) for name in ("h0", "c0", "n0", "m0")}
    x["starts"] = (rng.random((B, S)) < (0.3 if packed else 0)).astype(np.int32)
    return x


def _sample_forward(rng: np.random.Generator, n: int) -> Launch:
    x = sample_slstm(rng, B=2, S=max(1, n // 48), NH=2, DH=12, fresh=True, packed=True)
    return slstm_forward(**x)


def _sample_backward(rng: np.random.Generator, n: int) -> Launch:
    launch = _sample_forward(rng, n)
    x = {argument.name: launch.inputs[argument.name] for argument in _GIVEN}
    steps = {name: np.zeros(shape, np.float32) for name, shape in launch.outputs.items()}
    launch.kernel.reference(**launch.inputs, **steps)
    gradients = {
        name: rng.standard_normal(steps["h"][:, 0].shape, np.float32)
        for name in ("dc_last", "dn_last", "dm_last")
    }
    dh = rng.standard_normal(steps["h"].shape, np.float32)
    return slstm_backward(**x, **steps, dh=dh, **gradients)


_GIVEN = (*arrays("G R bias h0 c0 n0 m0"), Argument(name="starts", dtype="int32"))
_OF_START = ("dh0", "dc0", "dn0", "dm0")

FORWARD = Kernel(
    name="slstm_forward",
    header="slstm.h",
    source="""
        threadgroup float shared_h[mlxhog::kSlstmUnits];
        static_assert(sizeof(shared_h) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_forward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m,
                              mlxhog::SlstmShape{B, S, NH, DH}, shared_h,
                              thread_position_in_grid);
    """,
    inputs=(*_GIVEN, *sizes("B S NH DH")),
    outputs=arrays("h c n m"),
    reference=reference.slstm_forward,
    sample=_sample_forward,
    lockstep=True,
    rtol=1e-5,
)

BACKWARD = Kernel(
    name="slstm_backward",
    header="slstm.h",
    source="""
        threadgroup float shared[mlxhog::kSlstmShared];
        static_assert(sizeof(shared) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_backward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m, dh, dc_last, dn_last,
                               dm_last, dG, dh0, dc0, dn0, dm0, mlxhog::SlstmShape{B, S, NH, DH},
                               shared, thread_position_in_grid);
    """,
    inputs=(*_GIVEN, *arrays("h c n m dh dc_last dn_last dm_last"), *sizes("B S NH DH")),
    outputs=arrays("dG dh0 dc0 dn0 dm0"),
    reference=reference.slstm_backward,
    sample=_sample_backward,
    lockstep=True,
    rtol=1e-5,
)

KERNELS = (FORWARD, BACKWARD)
