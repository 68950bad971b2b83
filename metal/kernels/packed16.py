"""Adds to shared parameters of 16 bits, half or bfloat16, two in a 32-bit word.

Concurrency: no add is lost beside others of this kernel; each 16-bit float is whole. A word whose
compare-and-swap failed 64 times keeps its value and is counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.arguments import (
    DONE,
    arrays,
    check_range,
    check_written,
    size,
    sizes,
    written,
)

Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]

INSTANCES = ("half", "bfloat")


def words(values: NDArray[Any]) -> UInt32:
    """View 16-bit floats as the 32-bit words that `packed16_add` takes.

    Args:
        values: (n,) float16, or bfloat16 as uint16; C-contiguous, n even.

    Raises:
        ShapeError: an odd count, another width, strides, or an address inside a word.
    """
    if values.itemsize != 2 or not values.flags.c_contiguous:
        order = "C-contiguous" if values.flags.c_contiguous else "not C-contiguous"
        raise ShapeError(
            f"values are {values.dtype}, {order}; expected C-contiguous 16-bit floats "
            "(bfloat16 as uint16)"
        )
    if values.size % 2 or values.ctypes.data % 4:
        raise ShapeError(
            f"{values.size} 16-bit floats at address {values.ctypes.data:#x} are not whole 32-bit "
            "words; pad them to an even count and start them on an even element"
        )
    return values.reshape(-1).view(np.uint32)


def packed16_add(arena: Any, g: Any, failures: Any, *, offset: int, instance: str) -> Launch:
    """Launch the add of 2 n 16-bit floats in the words of g, each sum rounded to nearest even.

    Args:
        arena: (words,) uint32, shared, written in place; see `words`.
        g: (n,) uint32.
        failures: (8 or more,) uint32; the number of skipped words is added to its first element.
        offset: first 16-bit float of the arena, even.
        instance: "half" or "bfloat".

    Raises:
        ShapeError: an odd offset, a range outside the arena, an unknown instance, or `failures`
            is too small.
    """
    if instance not in INSTANCES:
        raise ShapeError(f"no 16-bit float {instance!r}; choose from {', '.join(INSTANCES)}")
    if offset % 2:
        raise ShapeError(
            f"offset {offset} is inside a 32-bit word, which holds two 16-bit floats; "
            "start parameters on an even element"
        )
    n_words = size(g)
    check_written("failures", failures)
    check_range("the arena", arena, offset // 2, n_words)
    numbers = {"n_words": n_words, "offset": offset // 2}
    return Launch(
        kernel=PACKED16_ADD,
        inputs={"arena": arena, "g": g, "failures": failures, **numbers},
        outputs={"done": (1,)},
        grid=(n_words, 1, 1),
        instance=instance,
    )


def bfloat_bits(x: Float32) -> UInt16:
    """float32 rounded to bfloat16, to nearest even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded >> 16).astype(np.uint16)


def from_bfloat_bits(bits: UInt16) -> Float32:
    """Each bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _reference(
    *,
    arena: UInt32,
    g: UInt32,
    failures: UInt32,
    n_words: int,
    offset: int,
    done: UInt32,
    instance: str,
) -> None:
    """Add the 16-bit floats in g's words to those in the arena's; never fails."""
    place = arena[offset : offset + n_words].view(np.uint16)
    delta = g[:n_words].view(np.uint16)
    if instance == "half":
        half = np.float16
        total = place.view(half).astype(np.float32) + delta.view(half).astype(np.float32)
        place[:] = total.astype(half).view(np.uint16)
    else:
        place[:] = bfloat_bits(from_bfloat_bits(place) + from_bfloat_bits(delta))
    done[:] = 1


def _sample(rng: np.random.Generator, n: int) -> Launch:
    # The bits of halves of order 1 are bfloat16 numbers of order 1 too.
    arena, g = (
        words(rng.standard_normal(2 * (n // 2 + extra)).astype(np.float16)) for extra in (8, 0)
    )
    return packed16_add(arena, g, np.zeros(8, np.uint32), offset=6, instance="half")


PACKED16_ADD = Kernel(
    name="packed16_add",
    header="packed16.h",
    source=(
        "mlxhog::packed16_add<T>(arena, g, failures, n_words, offset, done, "
        "thread_position_in_grid.x);"
    ),
    inputs=(
        written("arena", "uint32"),
        *arrays("g", "uint32"),
        written("failures", "uint32"),
        *sizes("n_words offset"),
    ),
    outputs=(DONE,),
    reference=_reference,
    sample=_sample,
    instances=INSTANCES,
    bytes_per_element=6,  # of one 16-bit float: arena read and written, g read
)
KERNELS = (PACKED16_ADD,)
