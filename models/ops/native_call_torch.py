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


def array(x: Tensor) -> NDArray[Any]:
    """View a tensor as a C-contiguous NumPy array; copies only where it is not contiguous."""
    view: NDArray[Any] = x.detach().contiguous().numpy()
    return view
