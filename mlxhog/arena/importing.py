"""Importing an arena's memory into a framework's own arrays, without a copy.

Metal wraps host memory into a buffer only if it begins on a page and is whole pages long, and MLX
counts an array's elements in 31 bits. So a segment is imported whole, padding included, as one flat
array or as the fewest that fit; parameters are slices of those.
Sources: MLX pull request 3872 (`copy=False`), Apple, `newBufferWithBytesNoCopy`.
"""

from __future__ import annotations

import mmap
from typing import Any

from numpy.typing import NDArray

from mlxhog.errors import EnvironmentLacks, ShapeError

MOST_ELEMENTS = 2**31 - 1  # of one MLX array: its sizes are int32


def pieces(
    host: NDArray[Any], *, page: int = mmap.PAGESIZE, most: int = MOST_ELEMENTS
) -> tuple[NDArray[Any], ...]:
    """Split host memory into the fewest flat arrays that a GPU can import without a copy.

    Args:
        host: one segment of an arena, flat, padding included; any dtype, may be read-only (a GPU
            that writes to it all the same gets a fault, not an exception).
        page: bytes in a page, 16,384 on Apple silicon.
        most: elements that one array may have.

    Returns:
        Views of `host`, in order; one unless it has more than `most` elements.

    Raises:
        ShapeError: not flat, not contiguous, or without elements.
        EnvironmentLacks: it does not begin or end on a page.
    """
    if host.ndim != 1 or not host.flags.c_contiguous or not host.size:
        raise ShapeError(
            f"an array of shape {host.shape} and strides {host.strides} cannot be imported; "
            "pass a whole segment, flat and contiguous, and slice what was imported"
        )
    address = int(host.ctypes.data)
    for what, n in (
        (f"starts at {address:#x}", address),
        (f"has {host.nbytes:,} bytes", host.nbytes),
    ):
        if n % page:
            raise EnvironmentLacks(
                f"this memory {what}, {n % page:,} bytes past a page of {page:,}; a GPU imports "
                "whole pages only: pass a segment of an arena, whole and with its padding, or "
                "train with --read snapshot and --gpu-write cpu, which import nothing"
            )
    step = most * host.itemsize // page * page // host.itemsize
    return tuple(host[at : at + step] for at in range(0, host.size, step))


def whole(host: NDArray[Any]) -> NDArray[Any]:
    """The one piece that a segment is, for those who need it in one array.

    Raises:
        ShapeError, EnvironmentLacks: as `pieces`; also a segment of more than one piece.
    """
    first, *rest = pieces(host)
    if rest:
        raise EnvironmentLacks(
            f"this segment has {host.size:,} elements, one array of MLX at most "
            f"{MOST_ELEMENTS:,}; train with --read snapshot and --gpu-write cpu"
        )
    return first
