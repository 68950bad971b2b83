"""The candidates of a study, in the order in which a sampler proposes them.

Every proposal and every score told goes to the store before it is acted upon. A sampler's choices
follow from its seed and from that history, so that repeating the history gives the same sampler.
"""

from __future__ import annotations

from typing import Protocol

from mlxhog.mad.study.store import Store
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical, parse

Layers = tuple[Layer, ...]


class Sampler(Protocol):
    """Proposes architectures, and learns from their scores."""

    def ask(self) -> Layers | None:
        """Propose one; None where there is none, at least until another score is told."""

    def tell(self, layers: Layers, score: float) -> None:
        """Learn what became of one."""


class Listed:
    """A sampler of given architectures, in their order."""

    def __init__(self, candidates: list[Layers]) -> None:
        self._left = iter(candidates)

    def ask(self) -> Layers | None:
        """See `Sampler.ask`."""
        return next(self._left, None)

    def tell(self, layers: Layers, score: float) -> None:
        """See `Sampler.tell`."""


class Candidates:
    """A sampler with a memory.

    Args:
        sampler: as it is at the beginning of the study.
        store: of the study; its history is repeated.

    Attributes:
        proposed: every candidate so far, in order; one may be proposed more than once.
        untold: those whose score has not been told.
        scores: the last score told of a candidate.
    """

    def __init__(self, sampler: Sampler, store: Store) -> None:
        self._sampler, self._store = sampler, store
        self.proposed: list[str] = []
        self.untold: set[str] = set()
        self.scores: dict[str, float] = {}
        for entry in store.proposals():
            candidate = str(entry["candidate"])
            if "score" in entry:
                sampler.tell(parse(candidate), float(entry["score"]))
                self._told(candidate, float(entry["score"]))
            else:
                sampler.ask()
                self._asked(candidate)

    def ask(self) -> str | None:
        """Return the next candidate as a canonical string, or None."""
        layers = self._sampler.ask()
        if layers is None:
            return None
        candidate = canonical(layers)
        self._store.add_proposal({"candidate": candidate})
        self._asked(candidate)
        return candidate

    def tell(self, candidate: str, score: float) -> None:
        """Tell what became of a candidate."""
        self._store.add_proposal({"candidate": candidate, "score": score})
        self._sampler.tell(parse(candidate), score)
        self._told(candidate, score)

    def _asked(self, candidate: str) -> None:
        self.proposed.append(candidate)
        self.untold.add(candidate)

    def _told(self, candidate: str, score: float) -> None:
        self.scores[candidate] = score
        self.untold.discard(candidate)
