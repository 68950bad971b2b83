"""Supports for tests: bitmaps of sets that are listed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from mlxhog.theory.supports import Supports


def of_masks(masks: NDArray[np.bool_]) -> Supports:
    """Supports of boolean rows, (samples, n)."""
    return Supports(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])


def of_lists(supports: Collection[Iterable[int]], n: int) -> Supports:
    """Supports of coordinates in [0, n), in any order."""
    masks = np.zeros((len(supports), n), bool)
    for mask, support in zip(masks, supports, strict=True):
        mask[list(support)] = True
    return of_masks(masks)
