"""Steps of tables: rows, and one running norm per table.

With g the gradient of the rows that a batch touches, and one number v per table for all workers:

    v <- 0.95 v + 0.05 mean(g^2)          begun with the first mean(g^2) above 0
    T[rows] <- T[rows] - lr g / sqrt(v)

A row has no state, no momentum and no decay, so a step costs as much as its rows. Steps depend on
the ratio of gradients only, so no clipping is needed, and one `ngram_lr` serves all orders; it
follows the schedule of `lr`. The rule is the same whatever optimizer the other parameters have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mlxhog import _native
from mlxhog.optim.gradients import Float32, Grads, Rows
from mlxhog.optim.updates import WRITE_MODES, check, row_width

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Slot

KEEP: Final = 0.95
MEANS: Final = "tables.means"
"""Segment of the arena: v of every table, float64, in the order of the layout."""


def segments(n_tables: int) -> dict[str, tuple[str, int]]:
    """The segment of the means; none for a model without tables."""
    return {MEANS: ("float64", n_tables)} if n_tables else {}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a model, as one worker writes them."""

    flat: Float32  # (n,) float32, all tables, shared
    slots: Mapping[str, Slot]  # every table by name
    means: NDArray[np.float64]  # (tables,) float64, v of each, shared
    locks: _native.Locks | None  # this worker's locks; may be None unless `mode` is lossless
    mode: int  # a value of `updates.WRITE_MODES`, the arena's

    @classmethod
    def of(cls, arena: Arena, slot: int) -> Tables | None:
        """Those of an arena for the worker in a slot; None if it has none."""
        if not arena.layout.tables:
            return None
        from mlxhog.arena.layout import TABLES

        return cls(
            flat=arena.segment(TABLES),
            slots=arena.layout.tables,
            means=arena.segment(MEANS),
            locks=arena.locks(slot),
            mode=WRITE_MODES[arena.write],
        )

    def step(self, rows: Mapping[str, Rows], *, lr: float, seed: int = 0) -> None:
        """Take one step of the tables, in place; a gradient that is not finite changes nothing.

        Args:
            rows: by table, each row once.
            lr: step size, > 0.
            seed: chooses the start of each pass; differs between workers and steps.

        Raises:
            ShapeError: a gradient does not belong to its table; no table has been written.

        Concurrency: rows are added as the mode promises. The means are written without a lock: of
        two at once one counts, as if its batch alone had come.
        """
        for name, grad in rows.items():
            check(self.slots[name], grad)
        for k, (name, slot) in enumerate(self.slots.items()):
            if name not in rows or not len(rows[name].index):
                continue
            grad, before = rows[name], float(self.means[k])
            mean = _native.sumsq(grad.values) / grad.values.size
            after = KEEP * before + (1.0 - KEEP) * mean if before else mean
            if math.isfinite(after) and after:
                self.means[k] = after
                self._add(slot, grad, lr / math.sqrt(after), seed)

    def _add(self, slot: Slot, grad: Rows, lr: float, seed: int) -> None:
        rows = (grad.index, row_width(slot), slot.row_word0, slot.size)
        place = (self.locks, self.mode, self.flat, slot.offset, grad.values)
        _native.step("gradient", (), (lr, 1.0, 0.0, 0.0), *place, rows=rows, seed=seed)


def parted(
    grads: Grads, tables: Tables | None
) -> tuple[dict[str, Float32 | Rows], dict[str, Rows]]:
    """Return the gradients of the parameters, and those of the tables."""
    slots = {} if tables is None else tables.slots
    rows = {k: grad for k, grad in grads.items() if k in slots and isinstance(grad, Rows)}
    return {k: grad for k, grad in grads.items() if k not in rows}, rows
