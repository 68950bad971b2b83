"""Updates of n-gram embedding tables: rows, and one running norm per table.

With g the gradient of the rows that a batch touches, and one number v per table and worker:

    v <- 0.95 v + 0.05 mean(g^2)          initially the first mean(g^2) above 0
    T[rows] <- T[rows] - lr g / sqrt(v)

A row has no state, no momentum and no decay, so an update costs as much as its rows. It does not
depend on the scale of gradients, so no clipping is needed, and one `ngram_lr` serves all orders,
whatever optimizer the other parameters have; it follows the schedule of `lr`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from mlxhog import _native
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import (
    GRADIENT,
    ElementwiseUpdate,
    Optimizer,
    OptimizerWrapper,
    Pairs,
    Shapes,
    UpdateStep,
    UpdateTarget,
    Write,
)

DECAY: Final = 0.95
NORM: Final = "tables.norm"
"""Segment of a worker's state: v of every table, float32."""


class WithTables(OptimizerWrapper):
    """An optimizer with the rule above for tables, and another for all other parameters."""

    own = (NORM,)

    def __init__(self, rule: Optimizer, tables: frozenset[str], factor: float) -> None:
        """Wrap an optimizer; the lr of `tables` is `factor` times its lr."""
        super().__init__(rule)
        self._tables, self._factor = tables, factor

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        return {**self.rule.state_shapes(shapes), NORM: dict.fromkeys(sorted(self._tables), (1,))}

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply an update; the gradient of a table that is not finite changes nothing."""
        self.rule.update(target, [pair for pair in pairs if pair[0].name not in self._tables], step)
        for slot, grad in pairs:
            if slot.name not in self._tables:
                continue
            assert isinstance(grad, Rows)
            norm = target.state(NORM, slot)
            before, count = float(norm[0]), grad.values.size
            mean = _native.sumsq(grad.values) / count if count else 0.0
            after = DECAY * before + (1.0 - DECAY) * mean if before else mean
            if count and after and math.isfinite(after):
                norm[0] = after
                form = ElementwiseUpdate(Write(self._factor * step.lr / math.sqrt(after)))
                with target.writing():
                    target.native(GRADIENT, slot, grad, form, step)
