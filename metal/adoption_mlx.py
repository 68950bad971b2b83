"""Host memory as an MLX array, without a copy: what the shared parameters of a run need on a GPU.

MLX wraps the pages in a Metal buffer (`mlxhog.arena.importing` says which memory fits). A version
that may hand an adopted buffer to the result of an operation ("donation") is refused.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import EnvironmentLacks


def adopt(host: NDArray[Any]) -> mx.array:
    """Return a flat MLX array over the memory of `host`, which stays alive as long as the array.

    Never write it with `+=`, item assignment or `.at[]`: kernels and the host write this memory.

    Args:
        host: a piece of an arena's segment, see `mlxhog.arena.importing.pieces`.

    Raises:
        EnvironmentLacks: MLX cannot share this memory here, gave other memory or less of it, or
            would not leave it alone.
    """
    if not refuses_donation():
        raise EnvironmentLacks(
            "this MLX may write results of its own into memory that it was lent: is_owned is "
            "missing in its mlx/array.h; python -m pip install 'mlx>=0.32.4'"
        )
    try:
        adopted = mx.asarray(host, copy=False)
    except ValueError as error:
        raise EnvironmentLacks(
            f"MLX cannot import {host.nbytes} bytes at {host.ctypes.data:#x} without a copy "
            f"({error}); use --read snapshot and --gpu-write cpu here"
        ) from error
    mx.eval(adopted)
    seen = np.array(adopted, copy=False)
    if (seen.ctypes.data, seen.nbytes) != (host.ctypes.data, host.nbytes):
        raise EnvironmentLacks(
            f"MLX made {seen.nbytes:,} bytes at {seen.ctypes.data:#x} of {host.nbytes:,} bytes at "
            f"{host.ctypes.data:#x}, so it did not import them; use --read snapshot and "
            "--gpu-write cpu here"
        )
    return adopted


@cache
def refuses_donation() -> bool:
    """Whether this MLX never writes a result into memory that it does not own (since 0.32.4).

    Read from the header that belongs to the library: the check that it makes has no Python name.
    """
    header = Path(mx.__file__).parent / "include" / "mlx" / "array.h"
    return header.is_file() and "is_owned" in header.read_text(encoding="utf-8", errors="replace")
