"""Causal depthwise convolution, with SiLU or without, in one launch, and its gradient (`conv.h`).

x may begin with P inputs before the first position, which have no output: the last K - 1 of an
earlier piece of the sequence. Before them x is 0. `back` limits how many earlier positions each
position sees, so that documents packed into one sequence do not see each other. Gradients of
weights and bias are summed in a fixed order, blocks of positions first. A launch with other shapes
than those in `SHAPES` raises `ShapeError`.

Source: the convolution in front of the cells of Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.metal.kernel import Argument, Kernel, Launch, Size
from mlxhog.metal.kernels.arguments import arrays, declare, launch, sizes

Array = NDArray[Any]
BLOCK = 64  # kConvBlock

SHAPES = {
    "x": "B R CH",  # R = P + S rows, of which the first P are no outputs
    "w": "CH 1 K",  # the last tap meets the position itself
    "bias": "CH",
    "back": "B S",  # int32, how many positions before its own an output sees, if there are as many
    "y": "B S CH",
    "dy": "B S CH",
    "dpre": "B S CH",  # gradient before SiLU, or of y without it
    "dx": "B R CH",
    "part": "B NB T CH",  # sums over NB blocks of 64 positions, of T = K + 1: taps, then the bias
    "dw": "CH 1 K",
    "dbias": "CH",
}
"""Shape of every array by its name, float32."""


def conv_forward(x: Any, w: Any, bias: Any, back: Any, *, silu: bool) -> Launch:
    """Compute y = conv(x) + bias, or silu of it."""
    inputs = {"x": x, "w": w, "bias": bias, "back": back}
    return _by_output(FORWARD, inputs, x, back, w.shape[-1], silu=int(silu))


def conv_bwd_pre(x: Any, w: Any, bias: Any, back: Any, dy: Any) -> Launch:
    """Differentiate SiLU; the convolution is computed again. The output is dpre."""
    inputs = {"x": x, "w": w, "bias": bias, "back": back, "dy": dy}
    return _by_output(PRE, inputs, x, back, w.shape[-1])


def conv_bwd_input(w: Any, back: Any, dpre: Any, *, P: int) -> Launch:
    """Differentiate with respect to x, of which P positions are no outputs."""
    (B, S, CH), K = dpre.shape, w.shape[-1]
    inputs = {"w": w, "back": back, "dpre": dpre}
    return _launch(INPUT, inputs, (B, S, CH, K, P), (CH, P + S, B))


def conv_bwd_partial(x: Any, back: Any, dpre: Any, *, K: int) -> Launch:
    """Sum the gradients of K taps and of the bias over blocks of positions: part."""
    B, S, CH, K, P = _sizes(x, back, K)
    inputs = {"x": x, "back": back, "dpre": dpre}
    return _launch(PARTIAL, inputs, (B, S, CH, K, P), (CH, -(-S // BLOCK), B))


def conv_bwd_final(part: Any, *, S: int) -> Launch:
    """Sum the parts of S positions to the gradients of weights and bias."""
    B, _, rows, CH = part.shape
    return _launch(FINAL, {"part": part}, (B, S, CH, rows - 1, 0), (CH, rows, 1))


_Sizes = tuple[int, int, int, int, int]


def _sizes(x: Any, back: Any, K: int) -> _Sizes:
    """Return B, S, CH, K and P; S is the length of `back`."""
    B, rows, CH = x.shape
    S = back.shape[-1]
    return B, S, CH, K, max(rows - S, 0)


def _by_output(
    kernel: Kernel, inputs: dict[str, Any], x: Any, back: Any, K: int, **more: int
) -> Launch:
    B, S, CH, K, P = _sizes(x, back, K)
    return _launch(kernel, inputs, (B, S, CH, K, P), (CH, S, B), **more)


def _launch(
    kernel: Kernel, inputs: dict[str, Any], sizes: _Sizes, grid: Size, **more: int
) -> Launch:
    B, S, CH, K, P = sizes
    derived = {"R": P + S, "NB": -(-S // BLOCK), "T": K + 1}
    numbers = {"B": B, "S": S, "CH": CH, "K": K, "P": P, **derived, **more}
    return launch(kernel, inputs, SHAPES, numbers, grid=grid, group=(32, 8, 1))


# -- declarations --------------------------------------------------------------------------------


def sample_conv(
    rng: np.random.Generator, *, B: int, S: int, CH: int, K: int, P: int = 0
) -> dict[str, Array]:
    """Random x, w and bias, and dy; every position sees all those before it."""
    shapes = {"x": (B, P + S, CH), "w": (CH, 1, K), "bias": (CH,), "dy": (B, S, CH)}
    drawn: dict[str, Array] = {
        name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    return drawn | {"back": np.full((B, S), K - 1, np.int32)}


def _sample(
    launched: Callable[[dict[str, Any]], Launch],
) -> Callable[[np.random.Generator, int], Launch]:
    """A launch on two sequences of twelve channels, about n elements."""

    def sample(rng: np.random.Generator, n: int) -> Launch:
        x: dict[str, Any] = sample_conv(rng, B=2, S=max(1, n // 24), CH=12, K=4)
        x["back"] = rng.integers(0, 4, x["back"].shape, np.int32)
        x["dpre"] = rng.standard_normal(x["dy"].shape, np.float32)
        x["part"] = rng.standard_normal((2, -(-x["x"].shape[1] // BLOCK), 5, 12), np.float32)
        return launched(x)

    return sample


def _kernel(
    name: str,
    inputs: tuple[Argument, ...],
    outputs: str,
    launched: Callable[[dict[str, Any]], Launch],
    more: str = "",
) -> Kernel:
    """Declare a kernel that takes arrays, their sizes, and `more` scalars."""
    return declare(
        name,
        "conv.h",
        inputs,
        arrays(outputs),
        sizes(more),
        sample=_sample(launched),
        shape="ConvShape{B, S, CH, K, P}",
        rtol=1e-5,
    )


_BACK = arrays("back", "int32")
_INPUTS = (*arrays("x w bias"), *_BACK)

FORWARD = _kernel(
    "conv_forward",
    _INPUTS,
    "y",
    lambda x: conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True),
    "silu",
)
PRE = _kernel(
    "conv_bwd_pre",
    (*_INPUTS, *arrays("dy")),
    "dpre",
    lambda x: conv_bwd_pre(x["x"], x["w"], x["bias"], x["back"], x["dy"]),
)
INPUT = _kernel(
    "conv_bwd_input",
    (*arrays("w"), *_BACK, *arrays("dpre")),
    "dx",
    lambda x: conv_bwd_input(x["w"], x["back"], x["dpre"], P=0),
)
PARTIAL = _kernel(
    "conv_bwd_partial",
    (*arrays("x"), *_BACK, *arrays("dpre")),
    "part",
    lambda x: conv_bwd_partial(x["x"], x["back"], x["dpre"], K=4),
)
FINAL = _kernel(
    "conv_bwd_final",
    arrays("part"),
    "dw dbias",
    lambda x: conv_bwd_final(x["part"], S=x["x"].shape[1]),
)

KERNELS = (FORWARD, PRE, INPUT, PARTIAL, FINAL)
