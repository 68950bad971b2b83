"""What an engine needs of PyTorch itself; see `Framework` in `engines.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mlxhog.parity.subject import Array


def start(device: str, threads: int) -> None:
    """Set the number of CPU threads; every array names its device."""
    torch.set_num_threads(threads)


def array(x: Array, device: str) -> Tensor:
    """Return a copy of x on a device."""
    return torch.tensor(x, device=device)


def indices(x: Array, device: str) -> Tensor:
    """Return integers as int64."""
    return array(x, device).long()


def host(x: Tensor) -> Array:
    """Return a tensor as a contiguous NumPy array."""
    values: Array = x.detach().cpu().contiguous().numpy()
    return values


def without_gradient() -> AbstractContextManager[Any]:
    """Keep nothing for gradients until the block ends."""
    return torch.inference_mode()


def evaluate(*arrays: Any) -> None:
    """Do nothing: PyTorch puts nothing off."""


def leaves(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of arrays, those of floats as leaves of a graph."""
    return {
        name: x.clone().requires_grad_() if x.is_floating_point() else x
        for name, x in arrays.items()
    }


def value_and_grad(
    function: Callable[[Mapping[str, Tensor]], Tensor], arrays: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a scalar function of arrays, and its gradient by each; zero for one it ignores."""
    copies = leaves(arrays)
    floats = {name: x for name, x in copies.items() if x.requires_grad}
    value = function(copies)
    grads = torch.autograd.grad(
        value, list(floats.values()), allow_unused=True, materialize_grads=True
    )
    return value, dict(zip(floats, grads, strict=True))


def stop_gradient(x: Tensor) -> Tensor:
    """Return x as a constant."""
    return x.detach()
