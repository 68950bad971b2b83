"""Causal depthwise convolution with SiLU in one launch, and its gradient in four (`conv.h`).

Before the first position x is 0; a state, the last K - 1 positions of an earlier piece, is not
taken yet: whoever needs one puts them in front of x and drops as many outputs.
The gradients of weights and bias are summed in a fixed order, blocks of positions first.

Source: the convolution in front of the cells of Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.metal.kernel import Kernel, Launch, Size
from mlxhog.metal.kernels import conv_reference as reference
from mlxhog.metal.kernels.arguments import arrays, check, sizes

_SIZES = sizes("B S CH K")
_GROUP = (32, 8, 1)


def conv_forward(x: Any, w: Any, bias: Any) -> Launch:
    """Compute y = silu(conv(x) + bias).

    Args:
        x: (B, S, CH) float32.
        w: (CH, 1, K), the last tap meets the position itself.
        bias: (CH,).

    Returns:
        A launch with the output y, shaped as x.

    Raises:
        ShapeError: shapes differ.
    """
    return _by_element(FORWARD, {"x": x, "w": w, "bias": bias}, "y")


def conv_bwd_pre(x: Any, w: Any, bias: Any, dy: Any) -> Launch:
    """Differentiate SiLU; the convolution is computed again.

    Args:
        x: as in `conv_forward`.
        w: likewise.
        bias: likewise.
        dy: gradient of y.

    Returns:
        A launch with the output dpre, the gradient before SiLU, shaped as x.

    Raises:
        ShapeError: shapes differ.
    """
    return _by_element(PRE, {"x": x, "w": w, "bias": bias, "dy": dy}, "dpre")


def conv_bwd_input(w: Any, dpre: Any) -> Launch:
    """Differentiate with respect to x.

    Args:
        w: as in `conv_forward`.
        dpre: from `conv_bwd_pre`.

    Returns:
        A launch with the output dx, shaped as x.

    Raises:
        ShapeError: shapes differ.
    """
    return _by_element(INPUT, {"w": w, "dpre": dpre}, "dx")


def conv_bwd_partial(x: Any, dpre: Any, *, K: int) -> Launch:
    """Sum the gradients of weights and bias over blocks of 64 positions.

    Args:
        x: as in `conv_forward`.
        dpre: from `conv_bwd_pre`.
        K: number of taps.

    Returns:
        A launch with the output part (B, blocks, K + 1, CH), the bias last.

    Raises:
        ShapeError: shapes differ.
    """
    B, S, CH = x.shape
    blocks = -(-S // reference.BLOCK)
    given = {"x": x, "dpre": dpre}
    check("conv_bwd_partial", given, dict.fromkeys(given, (B, S, CH)))
    return _launch(PARTIAL, given, {"part": (B, blocks, K + 1, CH)}, (B, S, CH, K), (CH, blocks, B))


def conv_bwd_final(part: Any, *, S: int) -> Launch:
    """Sum the parts to the gradients of weights and bias.

    Args:
        part: from `conv_bwd_partial`.
        S: positions of a sequence there.

    Returns:
        A launch with the outputs dw (CH, 1, K) and dbias (CH,).

    Raises:
        ShapeError: part is not of that many positions.
    """
    B, _, rows, CH = part.shape
    K = rows - 1
    check("conv_bwd_final", {"part": part}, {"part": (B, -(-S // reference.BLOCK), K + 1, CH)})
    outputs: dict[str, tuple[int, ...]] = {"dw": (CH, 1, K), "dbias": (CH,)}
    return _launch(FINAL, {"part": part}, outputs, (B, S, CH, K), (CH, K + 1, 1))


def _by_element(kernel: Kernel, given: dict[str, Any], output: str) -> Launch:
    B, S, CH = given["x" if "x" in given else "dpre"].shape
    K = given["w"].shape[-1]
    wanted: dict[str, tuple[int, ...]] = {"w": (CH, 1, K), "bias": (CH,)}
    check(kernel.name, given, {name: wanted.get(name, (B, S, CH)) for name in given})
    return _launch(kernel, given, {output: (B, S, CH)}, (B, S, CH, K), (CH, S, B))


def _launch(
    kernel: Kernel,
    given: dict[str, Any],
    outputs: dict[str, tuple[int, ...]],
    shape: tuple[int, int, int, int],
    grid: Size,
) -> Launch:
    scalars = dict(zip(("B", "S", "CH", "K"), shape, strict=True))
    return Launch(
        kernel=kernel, inputs={**given, **scalars}, outputs=outputs, grid=grid, group=_GROUP
    )


def sample_conv(
    rng: np.random.Generator, *, B: int, S: int, CH: int, K: int
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Random x, w and bias, and dy."""
    shapes = {"x": (B, S, CH), "w": (CH, 1, K), "bias": (CH,), "dy": (B, S, CH)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _sample(rng: np.random.Generator, n: int) -> dict[str, Any]:
    x: dict[str, Any] = sample_conv(rng, B=2, S=max(1, n // 24), CH=12, K=4)
    x["dpre"] = np.empty_like(x["dy"])
    reference.conv_bwd_pre(**x)
    x["part"] = np.empty((2, -(-x["x"].shape[1] // reference.BLOCK), 5, 12), np.float32)
    reference.conv_bwd_partial(x=x["x"], dpre=x["dpre"], K=4, part=x["part"])
    return x


def _sample_forward(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_forward(x["x"], x["w"], x["bias"])


def _sample_pre(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_pre(x["x"], x["w"], x["bias"], x["dy"])


def _sample_input(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_input(x["w"], x["dpre"])


def _sample_partial(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_partial(x["x"], x["dpre"], K=4)


def _sample_final(rng: np.random.Generator, n: int) -> Launch:
    x = _sample(rng, n)
    return conv_bwd_final(x["part"], S=x["x"].shape[1])


_SHAPE = "mlxhog::ConvShape{B, S, CH, K}, thread_position_in_grid"

FORWARD = Kernel(
    name="conv_forward",
    header="conv.h",
    source=f"mlxhog::conv_forward(x, w, bias, y, {_SHAPE});",
    inputs=(*arrays("x w bias"), *_SIZES),
    outputs=arrays("y"),
    reference=reference.conv_forward,
    sample=_sample_forward,
    rtol=1e-5,
    bytes_per_element=8,
)
PRE = Kernel(
    name="conv_bwd_pre",
    header="conv.h",
    source=f"mlxhog::conv_bwd_pre(x, w, bias, dy, dpre, {_SHAPE});",
    inputs=(*arrays("x w bias dy"), *_SIZES),
    outputs=arrays("dpre"),
    reference=reference.conv_bwd_pre,
    sample=_sample_pre,
    rtol=1e-5,
    bytes_per_element=12,
)
INPUT = Kernel(
    name="conv_bwd_input",
    header="conv.h",
    source=f"mlxhog::conv_bwd_input(w, dpre, dx, {_SHAPE});",
    inputs=(*arrays("w dpre"), *_SIZES),
    outputs=arrays("dx"),
    reference=reference.conv_bwd_input,
    sample=_sample_input,
    rtol=1e-5,
    bytes_per_element=8,
)
PARTIAL = Kernel(
    name="conv_bwd_partial",
    header="conv.h",
    source=f"mlxhog::conv_bwd_partial(x, dpre, part, {_SHAPE});",
    inputs=(*arrays("x dpre"), *_SIZES),
    outputs=arrays("part"),
    reference=reference.conv_bwd_partial,
    sample=_sample_partial,
    rtol=1e-5,
    bytes_per_element=8,
)
FINAL = Kernel(
    name="conv_bwd_final",
    header="conv.h",
    source=f"mlxhog::conv_bwd_final(part, dw, dbias, {_SHAPE});",
    inputs=(*arrays("part"), *_SIZES),
    outputs=arrays("dw dbias"),
    reference=reference.conv_bwd_final,
    sample=_sample_final,
    rtol=1e-5,
)

KERNELS = (FORWARD, PRE, INPUT, PARTIAL, FINAL)
