"""The mean of several workers' gradients in shared memory, and the step along it.

Parameters are divided into shares of about equal cost. A share of the mean, and of the step, may be
computed in any process, by one at a time. A worker's gradient is added to the mean in the order of
ranks, and squares are added up in the order of parameters: so neither the bits nor the norm depend
on who computes a share.

    segment            dtype    meaning
    grads.1 .. grads.P float32  gradients, laid out as the parameters before the tables; those of
                                tables are rows, see `division.py`
    grads.mean         float32  their mean
    sync.norm          float64  sum of squares of the mean, per parameter
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from mlxhog import _native
from mlxhog.optim.gradients import Float32, GradientSum, Grads, Rows, dense
from mlxhog.optim.rule import parameter
from mlxhog.strategies import division
from mlxhog.strategies.strategy import Segments, parameter_copies

if TYPE_CHECKING:
    import numpy as np

    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.strategies.context import Context


def segments(ranks: int, spec: Mapping[str, Parameter], tokens: int) -> Segments:
    """Return the arena segments for the gradients of ranks, each of at most `tokens`."""
    return {
        **parameter_copies([*(f"grads.{k + 1}" for k in range(ranks)), "grads.mean"], tables=False),
        "sync.norm": ("float64", len(spec)),
        **division.row_segments(ranks, spec, tokens),
    }


def norm(arena: Arena) -> float:
    """Return the norm of the mean gradient without tables, of which all shares are computed."""
    return math.sqrt(arena.segment("sync.norm").sum())


class MeanGradient:
    """One process's access to the gradients, their mean and the parameters.

    `weights` are labels by rank; a rank without any has no gradient.
    """

    def __init__(self, context: Context, ranks: int) -> None:
        arena = self._arena = context.arena
        self._context = context
        self._grads = [arena.segment(f"grads.{rank + 1}") for rank in range(ranks)]
        self._mean, self._norms = arena.segment("grads.mean"), arena.segment("sync.norm")
        self._target = context.target(state_slot=1)  # workers apply one gradient together
        self._slots = list(arena.layout.dense.values())
        costs = [context.optimizer.cost(slot) for slot in self._slots]
        self._shares = cache(partial(division.parameters, costs))

    def put(self, rank: int, grads: Grads, labels: int, before: int = 0) -> None:
        """Write the mean gradient of some labels in the place of the one before.

        If that was of `before` labels of the same step, the result is the mean of both.
        """
        import numpy as np

        if not labels:
            return
        kept, part = (np.float32(n / (before + labels)) for n in (before, labels))
        for name in self._arena.layout.tables:
            if isinstance(grad := grads[name], Rows):
                if before:
                    total = GradientSum()
                    old = division.mean_rows(self._arena, name, [(rank, float(kept))])
                    total.add({name: old}, 1.0)
                    total.add({name: grad}, float(part))
                    (grad,) = total.grads().values()
                    assert isinstance(grad, Rows)
                division.put_rows(self._arena, rank, name, grad)
        for slot in self._slots:
            own, grad = parameter(self._grads[rank], slot), dense(grads[slot.name], slot.shape)
            if before:
                own *= kept
                own += grad * part
            else:
                own[...] = grad

    def average(self, share: int, n: int, weights: Mapping[int, int]) -> None:
        """Compute one of n shares of the mean, and its sums of squares."""
        import numpy as np

        (first, of_first), *others = _factors(weights)
        scale = 1.0 / (1 + len(others))
        for index in self._shares(n)[share]:
            slot = self._slots[index]
            span = slice(slot.offset, slot.offset + slot.size)
            mean = self._mean[span]
            np.multiply(self._grads[first][span], of_first, out=mean)
            for rank, factor in others:
                grad = self._grads[rank][span]
                mean += grad if factor == 1 else grad * factor
            mean *= scale
            self._norms[index] = _native.sumsq_of_all([mean], self._context.threads)

    def apply(
        self, share: int, n: int, weights: Mapping[int, int], *, lr: float, step: int
    ) -> None:
        """Apply one of n shares of the update along the mean, all shares of which are computed."""
        import numpy as np

        grads: dict[str, Float32 | Rows] = {}
        factors, tables = _factors(weights), list(self._arena.layout.tables)
        parts = [(rank, float(factor) / len(factors)) for rank, factor in factors]
        for name in tables[share::n]:
            grads[name] = division.mean_rows(self._arena, name, parts)
        for index in self._shares(n)[share]:
            slot = self._slots[index]
            grads[slot.name] = mean = parameter(self._mean, slot)
            if slot.kind == "rows":  # an untouched row has an all-zero gradient
                touched = np.flatnonzero(mean.any(axis=1)).astype(np.int32)
                grads[slot.name] = Rows(touched, np.ascontiguousarray(mean[touched]))
        self._context.optimizer.step(
            self._target,
            grads,
            lr=lr,
            step=step,
            seed=share + 1,
            grad_scale=self._context.grad_scale(norm(self._arena)),
        )


def _factors(weights: Mapping[int, int]) -> list[tuple[int, np.float32]]:
    """Return the ranks with a gradient, and the factor of each, 1 on average."""
    import numpy as np

    own = {rank: weight for rank, weight in sorted(weights.items()) if weight}
    total, count = sum(own.values()), len(own)
    return [(rank, np.float32(weight * count / total)) for rank, weight in own.items()]
