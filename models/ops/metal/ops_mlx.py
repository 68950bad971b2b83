"""The operators in MLX with the cells and the convolution as Metal kernels; float32.

On the engine `mlx` a cell is as lazy as any operator. An emulated one evaluates its inputs when it
is called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops.metal.cells import MetalCells
from mlxhog.models.ops.reference.ops_mlx import MLXPlainForm


class MetalForm(MetalCells, MLXPlainForm):
    """The operators on one engine: `mlx` takes MLX's arrays as they are, others NumPy arrays."""

    def __init__(self, engine: Engine, plain: frozenset[str] = frozenset()) -> None:
        super().__init__(engine, plain)
        self._conv, self._mlstm = lru_cache(self._conv_of), lru_cache(self._mlstm_of)
        self._slstm = _differentiable(lambda *x: self.slstm_results(x), self._slstm_back)

    def enter(self, arrays: Sequence[array]) -> list[Any]:
        """Return the engine's own arrays; only `mlx` leaves them unevaluated."""
        if self.engine.name == "mlx":
            return list(arrays)
        mx.eval(arrays)
        return [self.engine.array(np.array(x)) for x in arrays]

    def leave(self, arrays: Sequence[Any]) -> tuple[array, ...]:
        """Return the engine's results as arrays of MLX."""
        if self.engine.name == "mlx":
            return tuple(arrays)
        return tuple(mx.array(self.engine.host(x)) for x in arrays)

    def conv(self, silu: bool, *inputs: array) -> array:
        """Return `conv_result`, differentiable."""
        y: array = self._conv(silu)(*inputs)
        return y

    def mlstm(self, chunk: int, eps: float, *inputs: array) -> tuple[array, ...]:
        """Return h and the last C, n and m of `mlstm_results`, differentiable."""
        h, *states = self._mlstm(chunk, eps)(*inputs)[:4]
        return h, *(x[:, :, -1] for x in states)

    def slstm(self, *inputs: array) -> tuple[array, ...]:
        """Return every h and the last c, n and m of `slstm_results`, differentiable."""
        h, *states = self._slstm(*inputs)[:4]
        return h, *(x[:, -1] for x in states)

    def _conv_of(self, silu: bool) -> Callable[..., Any]:
        def backward(inputs: Any, dy: array, _: Any) -> Any:
            return *self.conv_gradients(silu, inputs, dy), mx.zeros_like(inputs[3])

        return _differentiable(lambda *inputs: self.conv_result(silu, *inputs), backward)

    def _mlstm_of(self, chunk: int, eps: float) -> Callable[..., Any]:
        def backward(inputs: Any, d_results: Any, results: Any) -> Any:
            dh, *d_states = d_results[:4]
            d_last = (dh, *(x[:, :, -1] for x in d_states))
            return self.mlstm_gradients(chunk, eps, inputs, results, d_last)

        return _differentiable(lambda *x: self.mlstm_results(chunk, eps, x), backward)

    def _slstm_back(self, inputs: Any, d_results: Any, results: Any) -> Any:
        _, R, _, *state = inputs
        dh, *d_states = d_results[:4]
        d_last = (dh, *(x[:, -1] for x in d_states))
        return *self.slstm_gradients((R, *state), results, d_last), mx.zeros_like(inputs[-1])


def _differentiable(
    forward: Callable[..., Any], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Join a function and its gradient, which takes (inputs, d_results, results)."""
    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result
