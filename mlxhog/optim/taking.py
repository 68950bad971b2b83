"""Take what a selection lets go out of a worker's pending step."""

from __future__ import annotations

import math

import numpy as np

from mlxhog import _native
from mlxhog.config.selection import Selection
from mlxhog.optim.target import parameter
from mlxhog.optim.updates import Float32, Int32, Slot, row_width


def take(
    selection: Selection,
    pending: Float32,
    slot: Slot,
    rows: Int32 | None,
    *,
    lr: float,
    keep: bool,
    native: bool = True,
) -> tuple[Int32, Float32]:
    """Remove from `pending` what leaves of one parameter.

    Args:
        selection: what leaves.
        pending: (n,) float32, this worker's own, laid out as the parameter segment.
        slot: which parameter.
        rows: rows to choose from, ascending; None is all.
        lr: step size, for a threshold.
        keep: whether what does not leave stays; else it is dropped.
        native: False takes the NumPy reference.

    Returns:
        Elements of the row-major parameter, ascending (k,) int32, and their values (k,) float32.
    """
    if not native:
        return _reference(selection, pending, slot, rows, lr=lr, keep=keep)
    width, height = row_width(slot), slot.shape[0]
    place = (pending, slot.offset, width, height, rows)
    if selection.kind == "threshold":
        return _native.take_reaching(*place, selection.share * lr, keep)
    elements = (height if rows is None else len(rows)) * width
    return _native.take_largest(*place, math.ceil(selection.share * elements), keep)


def _reference(
    selection: Selection,
    pending: Float32,
    slot: Slot,
    rows: Int32 | None,
    *,
    lr: float,
    keep: bool,
) -> tuple[Int32, Float32]:
    table = np.arange(slot.size, dtype=np.int32).reshape(slot.shape[0], -1)
    places = (table if rows is None else table[rows]).reshape(-1)
    flat = parameter(pending, slot).reshape(-1)
    size = np.abs(flat[places])
    if selection.kind == "threshold":
        chosen = np.flatnonzero(size >= np.float32(selection.share * lr))
    else:
        largest = np.argsort(-size, kind="stable")[: math.ceil(selection.share * len(places))]
        chosen = np.sort(largest)
    index = places[chosen[size[chosen] > 0]]
    values = flat[index]
    flat[index if keep else places] = 0
    return index, values
