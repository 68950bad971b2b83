"""The candidates of a study, in the order in which a sampler proposes them.

Every proposal and every score told goes to the store before it is acted upon. A sampler's choices
follow from its seed and from that history, so that repeating the history gives the same sampler.
"""

from __future__ import annotations

from mlxhog.config.limits import shown
from mlxhog.errors import StudyError
from mlxhog.mad.search.candidates import Layers
from mlxhog.mad.search.samplers import Sampler
from mlxhog.mad.study.store import Store
from mlxhog.models.mad.sequence import canonical, parse


class Listed:
    """A sampler of given architectures, in their order."""

    def __init__(self, candidates: list[Layers]) -> None:
        self._left = iter(candidates)

    def ask(self) -> Layers | None:
        """See `Sampler.ask`."""
        return next(self._left, None)

    def tell(self, layers: Layers, score: float) -> None:
        """See `Sampler.tell`."""

    def recall(self, layers: Layers) -> None:
        """See `Sampler.recall`."""
        self.ask()


class Candidates:
    """A sampler with a memory.

    Args:
        sampler: as it is at the beginning of the study.
        store: of the study; its history is repeated.

    Attributes:
        proposed: every candidate so far, in order.
        untold: those whose score has not been told.
    """

    def __init__(self, sampler: Sampler, store: Store) -> None:
        self._sampler, self._store = sampler, store
        self.proposed: list[str] = []
        self.untold: set[str] = set()
        for entry in store.proposals():
            candidate, score = entry.get("candidate"), entry.get("score", 0.0)
            if not isinstance(candidate, str) or not isinstance(score, int | float):
                raise StudyError(
                    f"candidates.jsonl in {store.directory} has {shown(entry)}, wanted a candidate "
                    "and perhaps its score; remove the line"
                )
            if "score" in entry:
                sampler.tell(parse(candidate), float(score))
                self.untold.discard(candidate)
            else:
                sampler.recall(parse(candidate))
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
        self.untold.discard(candidate)

    def _asked(self, candidate: str) -> None:
        self.proposed.append(candidate)
        self.untold.add(candidate)
