"""The causal convolution as Metal kernels behind `mx.custom_function`; float32."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import metal_conv
from mlxhog.models.ops.conv_mlx import last_inputs, positions_back
from mlxhog.models.ops.metal_call_mlx import enter, leave


def causal_conv(
    engine: Engine,
    x: array,
    w: array,
    b: array,
    state: array | None,
    starts: array | None,
    silu: bool,
) -> tuple[array, array]:
    """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
    B, S, K = *x.shape[:2], w.shape[-1]
    inputs = x.astype(mx.float32)
    if state is not None:
        inputs = mx.concatenate([state.astype(mx.float32), inputs], 1)
    back = mx.full((B, S), K - 1, mx.int32) if starts is None else positions_back(starts, K)
    y: array = _conv(engine, silu)(inputs, w.astype(mx.float32), b.astype(mx.float32), back)
    padded = mx.pad(inputs, [(0, 0), (max(0, K - 1 - inputs.shape[1]), 0), (0, 0)])
    return y.astype(x.dtype), last_inputs(padded[:, padded.shape[1] - (K - 1) :], starts)


def _conv(engine: Engine, silu: bool) -> Callable[..., Any]:
    """The arrays of `metal_conv.py` -> y."""

    def forward(*arrays: array) -> array:
        (y,) = leave(engine, [metal_conv.forward(engine, *enter(engine, arrays), silu=silu)])
        return y

    def backward(primals: Any, dy: array, _: Any) -> Any:
        arrays = enter(engine, (*primals, dy))
        found = metal_conv.backward(engine, *arrays, silu=silu)
        return *leave(engine, found), mx.zeros_like(primals[3])

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result
