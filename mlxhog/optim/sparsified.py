"""Sparsified updates: few elements of each are written, the rest waits (error feedback).

The worker adds the optimizer's whole update to its private residual, the part of earlier updates
that is not written yet. Selected elements of the residual are added to the arena and removed from
it, so nothing is lost, only delayed. Conflicts, and the theory's Omega, rho and Delta, count only
the selected elements.

With SGD this is memory SGD: r += lr * g, and a selection of r is written. The selection comes after
AdamW: with a sparse gradient, the second moment of a rarely chosen element would decay to nothing,
and its next update would be far too large.
Source: Stich et al. 2018, arXiv:1809.07599; Karimireddy et al. 2019, arXiv:1901.09847.

    segment          meaning
    residual.<slot>  float32, laid out as the parameters: what this worker has not written yet

Like the moments it is private to a worker slot: inherited, saved and resumed. With
`error_feedback=False` the rest of each update is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from mlxhog.config.rules import Forms, number, positive
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Int32, Rows
from mlxhog.optim.rule import (
    Optimizer,
    OptimizerWrapper,
    Pairs,
    UpdateStep,
    UpdateTarget,
    parameter,
)
from mlxhog.optim.updates import row_width

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlxhog.arena.layout import Slot

RESIDUAL: Final = "residual"
_FORMS = Forms(
    "none, topk:F with a share 0 < F <= 1, or threshold:F with F > 0",
    {},
    none=(), topk=(number(lambda x: 0 < x <= 1),), threshold=(positive,),
)  # fmt: skip


class Selection(NamedTuple):
    """Which elements of a parameter, or of the touched rows, are written; zeros never are.

    kind "topk": the ceil(share * elements) of largest magnitude; among equals the first. Source:
    Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599.
    kind "threshold": every element of magnitude >= share * lr, so the written part does not depend
    on the schedule; AdamW's updates are about 1 lr. Related: Strom 2015, Interspeech.
    """

    kind: Literal["topk", "threshold"]
    share: float

    @classmethod
    def parse(cls, text: str) -> Selection | None:
        """Read "none", "topk:0.01" or "threshold:2", or raise ValueError."""
        kind, share = _FORMS.read(text)
        return cls("topk" if kind == "topk" else "threshold", *share) if share else None


def pop_selected(
    selection: Selection, pending: Float32, slot: Slot, rows: Int32 | None, *, lr: float, keep: bool
) -> tuple[Int32, Float32]:
    """Remove the selected elements of one parameter from `pending`, (n,) float32, its segment.

    They are chosen from `rows`, ascending, or all; the others stay if `keep`, else they are
    dropped. Returns their places in the row-major parameter, ascending (k,) int32, and values.
    """
    import numpy as np

    flat, width = parameter(pending, slot).reshape(-1), row_width(slot)
    candidates = flat if rows is None else flat.reshape(-1, width)[rows].reshape(-1)
    size = candidates.view(np.uint32) & np.uint32(0x7FFFFFFF)  # bits of |x| have the order of |x|
    if selection.kind == "threshold":
        least = np.float32(selection.share * lr).view(np.uint32)
        chosen = np.flatnonzero(size >= max(int(least), 1))
    else:
        chosen = _largest(size, math.ceil(selection.share * len(size)))
    values = candidates[chosen]
    index = chosen if rows is None else rows[chosen // width] * width + chosen % width
    if keep:
        flat[index] = 0.0
    else:
        flat.reshape(-1, width)[slice(None) if rows is None else rows] = 0.0
    return index.astype(np.int32), values


def _largest(size: NDArray[np.uint32], k: int) -> NDArray[np.intp]:
    """Places of the k largest numbers, of equal ones the first; never of a zero."""
    import numpy as np

    if k == 0:
        return np.empty(0, np.intp)
    bound = np.partition(size, -k)[-k] if k < len(size) else 0
    if bound == 0:
        return np.flatnonzero(size)
    larger, equal = size > bound, np.flatnonzero(size == bound)
    larger[equal[: k - np.count_nonzero(larger)]] = True
    return np.flatnonzero(larger)


class Sparsified(OptimizerWrapper):
    """An optimizer whose updates are written in part, by the CPU. Belongs to one worker."""

    def __init__(self, rule: Optimizer, selection: Selection, error_feedback: bool = True) -> None:
        assert not rule.shared_segments  # they would be written whole
        super().__init__(rule)
        self.selection, self.error_feedback = selection, error_feedback
        self.own = (RESIDUAL,) if error_feedback else ()
        self.written: Mapping[str, Int32] = {}  # elements of the last update, ascending
        self.scratch_arrays = int(not error_feedback)
        self._scratch: Float32 | None = None  # an update before the selection

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Compute one update and write the selected elements.

        Concurrency: parameters are read without a lock; elements are added as the arena's mode
        promises. A worker killed in between loses at most the elements of one update.
        """
        import numpy as np

        assert target.metal is None
        if not self.error_feedback and self._scratch is None:
            self._scratch = np.zeros(target.flat.size, np.float32)
        pending = target.private[RESIDUAL] if self._scratch is None else self._scratch
        self.rule.update(replace(target, pending=pending), pairs, step)
        how: dict[str, Any] = {"locks": target.locks, "mode": target.mode, "seed": step.seed}
        written = {}
        for slot, grad in pairs:
            rows = grad.index if isinstance(grad, Rows) else None
            index, values = pop_selected(
                self.selection, pending, slot, rows, lr=step.lr, keep=self.error_feedback
            )
            with target.writing():
                updates.add_at(target.flat, slot, index, values, **how)
            written[slot.name] = index
        self.written = written
