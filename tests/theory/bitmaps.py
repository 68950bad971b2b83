"""Supports for tests: bitmaps of sets that are listed."""

import numpy as np

from mlxhog.theory.supports import Supports


def of_masks(masks):
    """Supports of boolean rows, (samples, n)."""
    return Supports(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])


def of_lists(supports, n):
    """Supports of coordinates in [0, n), in any order."""
    masks = np.zeros((len(supports), n), bool)
    for mask, support in zip(masks, supports, strict=True):
        mask[list(support)] = True
    return of_masks(masks)
