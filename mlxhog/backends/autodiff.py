"""Arrays and gradients of both frameworks without a model, to run single operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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
        """Return a copy of x."""
        return self._torch.tensor(x, device=self._device)

    def indices(self, x: Array) -> Any:
        """Return integers in the framework's type of row indices."""
        return self.array(x).long()

    def host(self, x: Any) -> Array:
        """Return an array of the framework as a contiguous NumPy array."""
        values: Array = x.detach().cpu().contiguous().numpy()
        return values

    def without_gradient(self) -> AbstractContextManager[Any]:
        """Record nothing for gradients during the block."""
        return self._torch.inference_mode()

    def evaluate(self, *arrays: Any) -> None:
        """Compute arrays that are evaluated lazily; torch has none."""

    def leaves(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return copies of arrays as leaves for gradients; integers get none."""
        return {
            name: x.clone().requires_grad_() if x.is_floating_point() else x
            for name, x in arrays.items()
        }

    def value_and_grad(
        self, function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the value of a scalar function, and its gradient in each array of floats.

        The gradient in an array that the function does not use is zero.
        """
        copies = self.leaves(arrays)
        floats = {name: x for name, x in copies.items() if x.requires_grad}
        value = function(copies)
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
        self._mx, self._native = mx, adapter_mlx

    def array(self, x: Array) -> Any:
        """Return a copy of x."""
        return self._mx.array(x)

    def indices(self, x: Array) -> Any:
        """Return integers as they are."""
        return self._mx.array(x)

    def host(self, x: Any) -> Array:
        """Return a copy as a contiguous NumPy array of the same shape."""
        return np.array(x, order="C")

    def without_gradient(self) -> AbstractContextManager[Any]:
        """Record nothing for gradients during the block; MLX never does."""
        return self._native.without_gradient()

    def evaluate(self, *arrays: Any) -> None:
        """Compute arrays that are evaluated lazily."""
        self._mx.eval(*arrays)

    def leaves(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arrays unchanged, since MLX differentiates functions."""
        return dict(arrays)

    def value_and_grad(
        self, function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the value of a scalar function, and its gradient in each array."""
        value, grads = self._mx.value_and_grad(function)(dict(arrays))
        self._mx.eval(value, grads)
        return value, grads
