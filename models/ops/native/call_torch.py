"""How the native kernels are called from torch: their threads and their arrays."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mlxhog._native import ops

FAST_GEMM = ops.gemm_kernel() == "avx512"
"""Without AVX-512 the product of torch's own library is as fast or faster."""


def threads() -> int:
    """Return how many threads a native op may use."""
    return torch.get_num_threads()


def differentiated(*inputs: Tensor | None) -> bool:
    """Return whether a gradient will be asked for: an op may keep less where not."""
    wanted = any(x is not None and x.requires_grad for x in inputs)
    return wanted and torch.is_grad_enabled()


def array_or_none(x: Tensor | None) -> NDArray[Any] | None:
    """As `array`; None is passed on."""
    return None if x is None else array(x)


def array(x: Tensor) -> NDArray[Any]:
    """View a tensor as a C-contiguous NumPy array; copies only where it is not contiguous."""
    view: NDArray[Any] = x.detach().contiguous().numpy()
    return view
