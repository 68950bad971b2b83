"""Any candidate, each as likely as another, none twice."""

from __future__ import annotations

import random

from mlxhog.mad.search.candidates import Candidates, Layers
from mlxhog.mad.search.samplers.history import History, shuffled


class RandomSampler:
    """See `Sampler`; its order depends on the seed alone.

    Args:
        candidates: the space.
        seed: of the order.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        self._history = History(candidates, seed)
        self._order = shuffled(candidates.count, random.Random(f"{seed}"))

    def ask(self) -> Layers | None:
        """See `Sampler.ask`."""
        for number in self._order:
            layers = self._history.candidates[number]
            if layers not in self._history:
                return self._history.propose(layers)
        return None

    def tell(self, layers: Layers, score: float) -> None:
        """See `Sampler.tell`."""
        self._history.tell(layers, score)

    def recall(self, layers: Layers) -> None:
        """See `Sampler.recall`."""
        self._history.propose(layers)


make = RandomSampler
