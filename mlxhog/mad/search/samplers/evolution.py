"""Regularised evolution: one change to the best of a few candidates of the recent past.

The first candidates are those that the space says to start with, then random ones. After that,
every proposal draws a few of the latest that ended, and changes the best of them once. Old
candidates leave the population however good they were, so that one lucky score does not rule a
search.

Source: Real et al. 2019, Regularized Evolution for Image Classifier Architecture Search,
arXiv:1802.01548.
"""

from __future__ import annotations

from mlxhog.mad.search.candidates import Candidates, Layers
from mlxhog.mad.search.samplers.history import History
from mlxhog.mad.search.samplers.mutations import mutate

TRIES = 64
"""Changes that may lead out of the space, or to what is known, before a random candidate."""


class Evolution:
    """See `Sampler`.

    Args:
        candidates: the space.
        seed: of everything it draws.
        population: candidates that may have children: the latest to end. So many are proposed
            before the first child.
        sample: so many of them are drawn, and the best becomes the parent.
    """

    def __init__(
        self, candidates: Candidates, seed: int, *, population: int = 16, sample: int = 4
    ) -> None:
        self._history = History(candidates, seed)
        self._population = population
        self._sample = sample

    def ask(self) -> Layers | None:
        """See `Sampler.ask`."""
        if self._history.is_over:
            return None
        return self._history.propose(self._started() or self._child() or self._history.unseen())

    def tell(self, layers: Layers, score: float) -> None:
        """See `Sampler.tell`."""
        self._history.tell(layers, score)

    def recall(self, layers: Layers) -> None:
        """See `Sampler.recall`."""
        self._history.propose(layers)

    def _started(self) -> Layers | None:
        candidates = self._history.candidates
        for plan in candidates.space.start:
            layers = candidates.build(plan)
            if layers is not None and layers not in self._history:
                return layers
        return None

    def _child(self) -> Layers | None:
        """A change to a good one; None while too few are known, or where none leads anywhere."""
        candidates, stream = self._history.candidates, self._history.stream()
        told = self._history.told
        living = list(told)[-self._population :]
        if not living or len(self._history) < self._population:
            return None
        for _ in range(TRIES):
            drawn = stream.sample(living, min(self._sample, len(living)))
            plan = candidates.plan(max(drawn, key=told.__getitem__))
            assert plan is not None  # told candidates are of this space
            child = candidates.build(mutate(plan, candidates.space, stream))
            if child is not None and child not in self._history:
                return child
        return None


make = Evolution
