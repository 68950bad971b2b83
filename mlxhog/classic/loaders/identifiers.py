"""Identifiers of a file, which may have gaps, as places 0 .. n - 1 in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROOM = 8  # a table of places may be this many times as long as there are identifiers


def renumber(columns: Sequence[NDArray[np.int64]]) -> tuple[list[NDArray[np.int32]], int]:
    """Number all identifiers of some columns from 0, in rising order of the identifier.

    Args:
        columns: each (entries,) int64, none below 0.

    Returns:
        Each column's places, int32, and how many different identifiers there are.
    """
    largest = max(int(column.max()) for column in columns)
    if largest > _ROOM * sum(len(column) for column in columns) + 1_000_000:
        known, places = np.unique(np.concatenate(columns), return_inverse=True)
        ends = np.cumsum([len(column) for column in columns])[:-1]
        return np.split(places.astype(np.int32), ends), len(known)
    occurs = np.zeros(largest + 1, dtype=np.bool_)
    for column in columns:
        occurs[column] = True
    place = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    return [place[column] for column in columns], int(place[-1]) + 1
