"""Arrays and gradients of both frameworks without a model, to run single operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class TorchArrays:
    """Tensors of PyTorch on one device, and gradients of functions of them.

    Args:
        device: "cpu" or "mps".
        threads: threads on the CPU.
    """

    def __init__(self, device: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch, self._device = torch, device

    def array(self, x: Array) -> Any:
        """Return a copy of x; floats are leaves for gradients."""
        copy = self._torch.tensor(x, device=self._device)
        return copy.requires_grad_(copy.is_floating_point())

    def host(self, x: Any) -> Array:
        """Return an array of the framework as a contiguous NumPy array."""
        values: Array = x.detach().cpu().contiguous().numpy()
        return values

    def evaluate(self, *arrays: Any) -> None:
        """Compute arrays that are evaluated lazily; torch has none."""

    def value_and_grad(
        self, function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the value of a scalar function, and its gradient in each array of floats.

        The gradient in an array that the function does not use is zero.
        """
        floats = {name: x for name, x in arrays.items() if x.requires_grad}
        value = function(arrays)
        grads = self._torch.autograd.grad(
            value, list(floats.values()), allow_unused=True, materialize_grads=True
        )
        return value, dict(zip(floats, grads, strict=True))


class MLXArrays:
    """Arrays of MLX on one device, and gradients; with the methods of `TorchArrays`.

    Args:
        device: "cpu" or "gpu".
        threads: threads of the native operators.
    """

    def __init__(self, device: str, threads: int) -> None:
        import mlx.core as mx

        from mlxhog.models.ops.native import adapter_mlx

        mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
        adapter_mlx.set_threads(threads)
        self._mx = mx

    def array(self, x: Array) -> Any:
        """Return a copy of x."""
        return self._mx.array(x)

    def host(self, x: Any) -> Array:
        """Return a copy as a contiguous NumPy array of the same shape."""
        return np.array(x, order="C")

    def evaluate(self, *arrays: Any) -> None:
        """Compute arrays that are evaluated lazily."""
        self._mx.eval(*arrays)

    def value_and_grad(
        self, function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the value of a scalar function, and its gradient in each array."""
        value, grads = self._mx.value_and_grad(function)(dict(arrays))
        self._mx.eval(value, grads)
        return value, grads
