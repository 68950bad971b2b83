"""NumPy reference of `packed16.h`, for one writer, and bfloat16 in terms of bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]


def bfloat_bits(x: Float32) -> UInt16:
    """float32 rounded to bfloat16, to nearest even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded >> 16).astype(np.uint16)


def from_bfloat_bits(bits: UInt16) -> Float32:
    """The float32 that each bfloat16 is."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def packed16_add(
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
