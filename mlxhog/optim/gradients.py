"""Gradients of a backend: dense arrays, or only the touched rows.

The global norm is for clipping, and shows whether a gradient is finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mlxhog import _native
from mlxhog.errors import ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlxhog.arena.layout import Slot

Float32: TypeAlias = "NDArray[np.float32]"
Int32: TypeAlias = "NDArray[np.int32]"


@dataclass(frozen=True)
class Rows:
    """The gradient of some rows of a 2-D parameter; that of other rows is zero."""

    index: Int32  # (r,) row numbers in any order; a row may appear more than once
    values: Float32  # (r, d); values of equal rows add up

    def __post_init__(self) -> None:
        """Raise ShapeError unless the shapes fit."""
        if self.index.ndim != 1 or self.values.ndim != 2 or len(self.index) != len(self.values):
            raise ShapeError(
                f"Rows got index of shape {self.index.shape} and values of shape "
                f"{self.values.shape}; wanted (r,) and (r, d)"
            )

    def coalesced(self) -> Rows:
        """The same gradient with ascending rows, each once; itself if it has them already."""
        import numpy as np

        if bool(np.all(self.index[1:] > self.index[:-1])):
            return self
        rows, target = np.unique(self.index, return_inverse=True)
        values = np.zeros((len(rows), self.values.shape[1]), np.float32)
        _native.sum_rows(target.astype(np.int32), self.values, values.reshape(-1), values.shape[1])
        return Rows(rows, values)


Grads = Mapping[str, "Float32 | Rows"]


def dense(grad: Float32 | Rows, shape: tuple[int, ...]) -> Float32:
    """Return a gradient as an array of its parameter's shape."""
    import numpy as np

    if not isinstance(grad, Rows):
        return grad
    whole = np.zeros(shape, np.float32)
    _native.sum_rows(grad.index, grad.values, whole.reshape(-1), shape[1])
    return whole


class GradientSum:
    """A weighted sum of gradients over micro-batches, in arrays of its own."""

    def __init__(self) -> None:
        self._dense: dict[str, Float32] = {}
        self._rows: dict[str, list[Rows]] = {}

    def add(self, grads: Grads, weight: float) -> None:
        """Add `weight * grads`; names missing in one call count as zero there."""
        for name, grad in grads.items():
            if isinstance(grad, Rows):
                part = Rows(grad.index.copy(), grad.values * weight)
                self._rows.setdefault(name, []).append(part)
            elif name in self._dense:
                self._dense[name] += grad * weight
            else:
                self._dense[name] = grad * weight

    def grads(self) -> dict[str, Float32 | Rows]:
        """The sum, with each touched row once."""
        import numpy as np

        total: dict[str, Float32 | Rows] = dict(self._dense)
        for name, parts in self._rows.items():
            index = np.concatenate([part.index for part in parts])
            values = np.concatenate([part.values for part in parts])
            total[name] = Rows(index, values).coalesced()
        return total


def without_tables(grads: Grads, slots: Mapping[str, Slot]) -> Grads:
    """The gradients of all parameters but tables, which are not clipped (`tables.py`)."""
    if all(slots[name].kind != "table" for name in grads):
        return grads
    return {name: grad for name, grad in grads.items() if slots[name].kind != "table"}


def global_norm(grads: Grads, threads: int = 1) -> float:
    """Euclidean norm of the whole gradient, summed in float64 in the order of `grads`.

    Finite exactly if every element is. Duplicate rows are summed up first. The bits do not depend
    on `threads`.
    """
    arrays = [
        grad.coalesced().values if isinstance(grad, Rows) else grad for grad in grads.values()
    ]
    return math.sqrt(_native.sumsq_of_all(arrays, threads))


def clip_factor(norm: float, max_norm: float) -> float:
    """Factor that brings a gradient of `norm` down to `max_norm`; 1 below it, or if it is 0.

    Source: torch.nn.utils.clip_grad_norm_, `min(1, max_norm / (norm + 1e-6))`.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
