"""A fast matrix product for MLX on a Linux CPU.

The Linux build of MLX links the reference BLAS, about 8 GFLOP/s on one core. torch's library
exports the same symbols from MKL, about 100 GFLOP/s. The dynamic linker takes the first definition
it meets, so loading torch's library globally before MLX is imported is enough. It is a load-order
trick: best effort, logged by the worker, switched off by `cpu_blas="reference"`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path


def preload(threads: int) -> str:
    """Make MKL's matrix product available to MLX; call before the first `import mlx.core`.

    Args:
        threads: threads MKL may use; an existing `MKL_NUM_THREADS` wins.

    Returns:
        What MLX will use: "accelerate", "mkl" or "reference", with the reason where it matters.
    """
    if sys.platform == "darwin":
        return "accelerate"
    if "mlx.core" in sys.modules:
        return "reference (mlx was imported before)"
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return "reference (torch is not installed)"
    library = Path(torch.origin).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return f"reference (no {library.name})"
    os.environ.setdefault("MKL_NUM_THREADS", str(threads))
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"reference ({error})"
    return "mkl"
