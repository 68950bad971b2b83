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

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.backends.backend import Grads
from mlxhog.config import local_strategies as choices
from mlxhog.optim.rule import parameter
from mlxhog.strategies.context import Context
from mlxhog.strategies.control_words import StepRecord
from mlxhog.strategies.local import LocalWorker
from mlxhog.strategies.local_sgd import (
    ANCHOR,
    Anchored,
    average_share,
    dense,
    keep_anchor,
    take_average,
)
from mlxhog.strategies.rounds import Rounds


class FedProx(Anchored):
    """Local SGD with a proximal term."""

    stages: ClassVar[tuple[Callable[[Any, Arena, Rounds, int], None], ...]] = (
        average_share,
        keep_anchor,
        take_average,
    )

    def worker(self, context: Context) -> FedProxWorker:
        """Prepare one worker."""
        return FedProxWorker(context)


class FedProxWorker(LocalWorker):
    """Local steps with a pull."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        super().__init__(context)
        chosen = context.chosen(choices.FedProx)
        self._anchor, self._mu = context.arena.segment(ANCHOR), chosen.mu
        self._in_gradient = chosen.mu > 0 and chosen.prox == "grad"
        self._decoupled = chosen.mu > 0 and chosen.prox == "decoupled"

    def corrected(self, grads: Grads) -> Grads:
        """Add `mu (w - a)`."""
        if not self._in_gradient:
            return grads
        pulled: Grads = {}
        for name, grad in grads.items():
            slot = self.context.arena.layout.slots[name]
            own, anchor = parameter(self._copy, slot), parameter(self._anchor, slot)
            pull = np.float32(self._mu) * (own - anchor)
            pulled[name] = dense(grad, slot.shape) + pull
        return pulled

    def apply(self, grads: Grads, direction: Grads, norm: float, record: StepRecord) -> None:
        """Pull first, if the pull is decoupled."""
        if self._decoupled:
            rate = np.float32(self.lr() * self._mu)
            span = slice(self.context.arena.layout.probe.offset)
            self._copy[span] -= rate * (self._copy[span] - self._anchor[span])
        super().apply(grads, direction, norm, record)
