"""Causal depthwise convolution, with SiLU or without, in one launch, and its gradient (`conv.h`).

x may begin with the P inputs before the first position, which only the taps see: the last K - 1 of
an earlier piece of the sequence. Before those it is 0. `back` says of each position how many others
before it it sees at most, so that documents packed into one sequence do not see each other.
The gradients of weights and bias are summed in a fixed order, blocks of positions first.

Source: the convolution in front of the cells of Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch, Size
from mlxhog.metal.kernels import conv_reference as reference
from mlxhog.metal.kernels.arguments import arrays, check, sizes

_SIZES = sizes("B S CH K P")
_BACK = Argument(name="back", dtype="int32")
_GROUP = (32, 8, 1)


def conv_forward(x: Any, w: Any, bias: Any, back: Any, *, silu: bool) -> Launch:
    """Compute y = conv(x) + bias, or silu of it.

    Args:
        x: (B, P + S, CH) float32, the first P positions are no outputs.
        w: (CH, 1, K), the last tap meets the position itself.
        bias: (CH,).
        back: (B, S) int32, how many positions before its own an output sees, if there are as many
            and K is large enough.
        silu: whether to apply SiLU.

    Returns:
        A launch with the output y (B, S, CH).

    Raises:
        ShapeError: shapes differ.
    """
    given = {"x": x, "w": w, "bias": bias, "back": back}
    shape = _check("conv_forward", given, w.shape[-1])
    return _by_output(FORWARD, given | {"silu": int(silu)}, "y", shape)


def conv_bwd_pre(x: Any, w: Any, bias: Any, back: Any, dy: Any) -> Launch:
    """Differentiate SiLU; the convolution is computed again.

    Args:
        x: as in `conv_forward`.
        w: likewise.
        bias: likewise.
        back: likewise.
        dy: gradient of y.

    Returns:
        A launch with the output dpre, the gradient before SiLU, shaped as y.

    Raises:
        ShapeError: shapes differ.
    """
    given = {"x": x, "w": w, "bias": bias, "back": back, "dy": dy}
    return _by_output(PRE, given, "dpre", _check("conv_bwd_pre", given, w.shape[-1]))


def conv_bwd_input(w: Any, back: Any, dpre: Any, *, P: int) -> Launch:
    """Differentiate with respect to x.

    Args:
        w: as in `conv_forward`.
        back: likewise.
        dpre: from `conv_bwd_pre`, or the gradient of y without SiLU.
        P: positions of x that are no outputs.

    Returns:
        A launch with the output dx (B, P + S, CH).

    Raises:
        ShapeError: shapes differ.
    """
    given = {"w": w, "back": back, "dpre": dpre}
    (B, S, CH), K = dpre.shape, w.shape[-1]
    check("conv_bwd_input", given, {"w": (CH, 1, K), "back": (B, S), "dpre": (B, S, CH)})
    return _launch(INPUT, given, {"dx": (B, P + S, CH)}, (B, S, CH, K, P), (CH, P + S, B))


def conv_bwd_partial(x: Any, back: Any, dpre: Any, *, K: int) -> Launch:
    """Sum the gradients of weights and bias over blocks of 64 positions.

    Args:
        x: as in `conv_forward`.
        back: likewise.
        dpre: as in `conv_bwd_input`.
        K: number of taps.

    Returns:
        A launch with the output part (B, blocks, K + 1, CH), the bias last.

    Raises:
        ShapeError: shapes differ.
    """
    given = {"x": x, "back": back, "dpre": dpre}
    B, S, CH, K, P = _check("conv_bwd_partial", given, K)
    blocks = -(-S // reference.BLOCK)
    outputs: dict[str, tuple[int, ...]] = {"part": (B, blocks, K + 1, CH)}
    return _launch(PARTIAL, given, outputs, (B, S, CH, K, P), (CH, blocks, B))


def conv_bwd_final(part: Any, *, S: int) -> Launch:
    """Sum the parts to the gradients of weights and bias.

    Args:
        part: from `conv_bwd_partial`.
        S: outputs of a sequence there.

    Returns:
        A launch with the outputs dw (CH, 1, K) and dbias (CH,).

    Raises:
        ShapeError: part is not of that many positions.
    """
    B, _, rows, CH = part.shape
    K = rows - 1
    check("conv_bwd_final", {"part": part}, {"part": (B, -(-S // reference.BLOCK), K + 1, CH)})
    outputs: dict[str, tuple[int, ...]] = {"dw": (CH, 1, K), "dbias": (CH,)}
    return _launch(FINAL, {"part": part}, outputs, (B, S, CH, K, 0), (CH, K + 1, 1))


_Shape = tuple[int, int, int, int, int]


def _check(kernel: str, given: dict[str, Any], K: int) -> _Shape:
    """Return B, S, CH, K and P; the outputs are as many as `back` has."""
    B, rows, CH = given["x"].shape
    S = given["back"].shape[-1]
    wanted: dict[str, tuple[int, ...]] = {
        "x": (B, max(rows, S), CH),
        "w": (CH, 1, K),
        "bias": (CH,),
        "back": (B, S),
    }
    check(kernel, given, {name: wanted.get(name, (B, S, CH)) for name in given})
    return B, S, CH, K, rows - S


def _by_output(kernel: Kernel, given: dict[str, Any], output: str, shape: _Shape) -> Launch:
    B, S, CH, _, _ = shape
    return _launch(kernel, given, {output: (B, S, CH)}, shape, (CH, S, B))


def _launch(
    kernel: Kernel,
    given: dict[str, Any],
    outputs: dict[str, tuple[int, ...]],
    shape: _Shape,
    grid: Size,
) -> Launch:
    scalars = dict(zip(("B", "S", "CH", "K", "P"), shape, strict=True))
    return Launch(
        kernel=kernel, inputs={**given, **scalars}, outputs=outputs, grid=grid, group=_GROUP
    )


def sample_conv(
    rng: np.random.Generator, *, B: int, S: int, CH: int, K: int, P: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Random x, w and bias, and dy; every position sees all those before it."""
    shapes = {"x": (B, P + S, CH), "w": (CH, 1, K), "bias": (CH,), "dy": (B, S, CH)}
    drawn: dict[str, np.ndarray[Any, Any]] = {
        name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    return drawn | {"back": np.full((B, S), K - 1, np.int32)}


def _sample(rng: np.random.Generator, n: int) -> dict[str, Any]:
    x: dict[str, Any] = sample_conv(rng, B=2, S=max(1, n // 24), CH=12, K=4)
    x["back"] = rng.integers(0, 4, x["back"].shape, np.int32)
    x["dpre"] = np.empty_like(x["dy"])
    reference.conv_bwd_pre(**x)
    x["part"] = np.empty((2, -(-x["x"].shape[1] // reference.BLOCK), 5, 12), np.float32)
    reference.conv_bwd_partial(x=x["x"], back=x["back"], dpre=x["dpre"], K=4, part=x["part"])
    return x


def _sample_forward(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True)


def _sample_pre(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_pre(x["x"], x["w"], x["bias"], x["back"], x["dy"])


def _sample_input(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_input(x["w"], x["back"], x["dpre"], P=0)


def _sample_partial(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_partial(x["x"], x["back"], x["dpre"], K=4)


def _sample_final(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_final(x["part"], S=x["x"].shape[1])


_SHAPE = "mlxhog::ConvShape{B, S, CH, K, P}"
_AT = "thread_position_in_grid"

FORWARD = Kernel(
    name="conv_forward",
    header="conv.h",
    source=f"mlxhog::conv_forward(x, w, bias, back, y, {_SHAPE}, silu, {_AT});",
    inputs=(*arrays("x w bias"), _BACK, *_SIZES, *sizes("silu")),
    outputs=arrays("y"),
    reference=reference.conv_forward,
    sample=_sample_forward,
    rtol=1e-5,
    bytes_per_element=8,
)
PRE = Kernel(
    name="conv_bwd_pre",
    header="conv.h",
    source=f"mlxhog::conv_bwd_pre(x, w, bias, back, dy, dpre, {_SHAPE}, {_AT});",
    inputs=(*arrays("x w bias"), _BACK, *arrays("dy"), *_SIZES),
    outputs=arrays("dpre"),
    reference=reference.conv_bwd_pre,
    sample=_sample_pre,
    rtol=1e-5,
    bytes_per_element=12,
)
INPUT = Kernel(
    name="conv_bwd_input",
    header="conv.h",
    source=f"mlxhog::conv_bwd_input(w, back, dpre, dx, {_SHAPE}, {_AT});",
    inputs=(*arrays("w"), _BACK, *arrays("dpre"), *_SIZES),
    outputs=arrays("dx"),
    reference=reference.conv_bwd_input,
    sample=_sample_input,
    rtol=1e-5,
    bytes_per_element=8,
)
PARTIAL = Kernel(
    name="conv_bwd_partial",
    header="conv.h",
    source=f"mlxhog::conv_bwd_partial(x, back, dpre, part, {_SHAPE}, {_AT});",
    inputs=(*arrays("x"), _BACK, *arrays("dpre"), *_SIZES),
    outputs=arrays("part"),
    reference=reference.conv_bwd_partial,
    sample=_sample_partial,
    rtol=1e-5,
    bytes_per_element=8,
)
FINAL = Kernel(
    name="conv_bwd_final",
    header="conv.h",
    source=f"mlxhog::conv_bwd_final(part, dw, dbias, {_SHAPE}, {_AT});",
    inputs=(*arrays("part"), *_SIZES),
    outputs=arrays("dw dbias"),
    reference=reference.conv_bwd_final,
    sample=_sample_final,
    rtol=1e-5,
)

KERNELS = (FORWARD, PRE, INPUT, PARTIAL, FINAL)
