"""Add deltas to shared parameters, and read them; fused updates use the same locks and kernels.

    mode       number  promise of concurrent adds
    lossless   0       no increment is lost; locks of a dead worker are taken over (locks.h)
    racy       1       elements never tear; simultaneous increments of one element may be lost
    cas        2       no increment is lost, also beside 32-bit atomics of a GPU; 20-100 x slower

All writers of an arena use the mode in its header. A `dense` parameter has a lock per 1024 floats
of the segment, one of `rows` and a `table` a lock per row, whether a gradient is dense or rows.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730; the lossless mode is the one its theorem covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mlxhog import _native
from mlxhog.errors import ShapeError
from mlxhog.optim.gradients import Float32, Int32, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlxhog.arena.layout import Slot

WRITE_MODES: Final[Mapping[str, int]] = {"lossless": 0, "racy": 1, "cas": 2}
IN_TURN: Final = 3
"""As lossless, and accesses are logged or replayed; for the locks of recorded runs."""

STRIPE: Final = _native.STRIPE  # floats guarded by one dense lock


def check(slot: Slot, delta: Float32 | Rows) -> None:
    """Raise ShapeError for another shape, dtype or memory order than the slot's, or a row."""
    import numpy as np

    parts: list[tuple[str, NDArray[Any], type, tuple[int, ...]]]
    parts = [("values", delta, np.float32, slot.shape)] if not isinstance(delta, Rows) else [
        ("values", delta.values, np.float32, (len(delta.index), *slot.shape[1:])),
        ("rows", delta.index, np.int32, (len(delta.index),)),
    ]  # fmt: skip
    for what, array, dtype, shape in parts:
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            order = "C-contiguous" if array.flags.c_contiguous else "not C-contiguous"
            raise ShapeError(
                f"{what} of a delta for {slot.name!r} are {array.dtype} {array.shape}, {order}; "
                f"wanted C-contiguous {np.dtype(dtype)} {shape}: build the model and the arena "
                "from the same config"
            )
    if isinstance(delta, Rows) and len(index := delta.index):
        if not 0 <= index.min() <= index.max() < slot.shape[0]:
            raise ShapeError(
                f"rows of {slot.name!r} run from {index.min()} to {index.max()}; "
                f"the parameter has rows 0 to {slot.shape[0] - 1}"
            )


def row_width(slot: Slot) -> int:
    """Floats in one row of a parameter."""
    return slot.size // slot.shape[0]


def add(
    flat: Float32,
    slot: Slot,
    delta: Float32 | Rows,
    *,
    locks: _native.Locks | None,
    mode: int,
    seed: int = 0,
) -> None:
    """Add `delta` to one shared parameter, in place, as the mode promises (the module's table).

    Args:
        flat: (n,) float32, the whole parameter segment; other processes may write it meanwhile.
        slot: of the parameter.
        delta: float32 of the parameter's shape, or some of its rows (duplicates add up).
        locks: this worker's; may be None unless `mode`, the arena's, is lossless.
        mode: a value of `WRITE_MODES`.
        seed: chooses the start of the pass; workers should differ, so that they keep apart.

    Raises:
        ShapeError: delta and slot differ; nothing has been written.
    """
    check(slot, delta)
    index, values = (delta.index, delta.values) if isinstance(delta, Rows) else (None, delta)
    by_rows = index is not None or slot.kind != "dense"
    rows = (index, row_width(slot), slot.row_word0, slot.size) if by_rows else None
    _native.add(locks, mode, flat, slot.offset, values, rows, seed)


def add_at(
    flat: Float32,
    slot: Slot,
    index: Int32,
    values: Float32,
    *,
    locks: _native.Locks | None,
    mode: int,
    seed: int = 0,
) -> None:
    """Add `values`, (k,) float32, to elements of one shared parameter; the rest is as in `add`.

    `index` has their places in the row-major parameter, (k,) int32, ascending, each once; else a
    ValueError is raised, and nothing has been written.
    """
    place = (flat, slot.offset, slot.size, row_width(slot), slot.row_word0)
    _native.add_at(locks, mode, *place, index, values, seed)


def snapshot(dst: Float32, src: Float32, *, threads: int = 1) -> None:
    """Copy the shared floats `src` into the private `dst`, both (n,) float32.

    Concurrency: takes no lock; no element is torn, but they may be of different updates.
    """
    _native.read(dst, src, threads=threads)
