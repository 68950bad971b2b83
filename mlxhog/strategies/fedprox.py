"""FedProx: local SGD whose steps are pulled towards the last average.

With `w` a worker's parameters, `a` the last average and g a gradient, `--prox` chooses where the
pull goes:

    grad       the optimizer takes g + mu (w - a), so that Adam scales the pull as well
    decoupled  w <- w - lr mu (w - a), and then the optimizer's step for g, as with weight decay

It is for workers whose texts differ (`--split`), and for unequal local work
(`--local-work speed`): a worker that takes more steps is held back more. `--prox-mu 0` is local
SGD, bit for bit.
Source: Li et al. 2020, Federated Optimization in Heterogeneous Networks, arXiv:1812.06127.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mlxhog.backends.backend import Grads
from mlxhog.optim.rule import parameter
from mlxhog.strategies.context import Context
from mlxhog.strategies.local import (
    ANCHOR,
    Anchored,
    LocalWorker,
    Stage,
    average_share,
    dense,
    keep_anchor,
    take_average,
)
from mlxhog.strategies.rounds import StepRecord


class FedProx(Anchored):
    """Local SGD with a proximal term."""

    stages: ClassVar[tuple[Stage, ...]] = (average_share, keep_anchor, take_average)

    def worker(self, context: Context) -> LocalWorker:
        """Prepare one worker; without a pull it is that of local SGD."""
        return (FedProxWorker if self.choice.mu > 0 else LocalWorker)(context)


class FedProxWorker(LocalWorker):
    """Local steps with a pull."""

    def corrected(self, grads: Grads) -> Grads:
        """Add `mu (w - a)`, unless the pull is decoupled."""
        if self.context.choice.prox == "decoupled":
            return grads
        pulled: Grads = {}
        for name, grad in grads.items():
            slot = self.context.arena.layout.slots[name]
            anchor = parameter(self.context.arena.segment(ANCHOR), slot)
            pull = np.float32(self.context.choice.mu) * (parameter(self._copy, slot) - anchor)
            pulled[name] = dense(grad, slot.shape) + pull
        return pulled

    def apply(self, grads: Grads, direction: Grads, norm: float, record: StepRecord) -> None:
        """Pull first, if the pull is decoupled."""
        arena, choice = self.context.arena, self.context.choice
        if choice.prox == "decoupled":
            span = slice(arena.layout.probe.offset)
            moved = self._copy[span] - arena.segment(ANCHOR)[span]
            self._copy[span] -= np.float32(self.lr() * choice.mu) * moved
        super().apply(grads, direction, norm, record)
