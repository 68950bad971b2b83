"""Every candidate, in the order of the space."""

from __future__ import annotations

from mlxhog.mad.search.candidates import Candidates, Layers
from mlxhog.mad.search.samplers.history import History


class Grid:
    """See `Sampler`.

    Args:
        candidates: the space.
        seed: of no effect.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        self._history = History(candidates, seed)
        self._next = 0

    def ask(self) -> Layers | None:
        """See `Sampler.ask`."""
        candidates = self._history.candidates
        while self._next < candidates.count:
            layers = candidates[self._next]
            self._next += 1
            if layers not in self._history:
                return self._history.propose(layers)
        return None

    def tell(self, layers: Layers, score: float) -> None:
        """See `Sampler.tell`."""
        self._history.tell(layers, score)

    def recall(self, layers: Layers) -> None:
        """See `Sampler.recall`."""
        self._history.propose(layers)


make = Grid
