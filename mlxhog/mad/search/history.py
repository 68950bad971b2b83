"""What a sampler has proposed, in order, and what became of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from mlxhog.mad.search.candidates import Candidates, Layers


class History:
    """Proposals and scores of one sampler.

    Args:
        candidates: the space.
        seed: of the sampler.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        self.candidates = candidates
        self.told: dict[Layers, float] = {}
        """Scores, in the order in which they came."""
        self._seed = seed
        self._proposed: dict[Layers, None] = {}

    def __len__(self) -> int:
        """Number of proposals."""
        return len(self._proposed)

    def __contains__(self, layers: Layers) -> bool:
        """Whether layers were proposed."""
        return layers in self._proposed

    @property
    def is_over(self) -> bool:
        """Whether every candidate was proposed."""
        return len(self) >= self.candidates.count

    def propose(self, layers: Layers) -> Layers:
        """Take note of a proposal and return it."""
        self._proposed[layers] = None
        return layers

    def tell(self, layers: Layers, score: float) -> None:
        """Take note of a score; the first one of a candidate counts."""
        self.propose(layers)
        self.told.setdefault(layers, score)

    def stream(self) -> random.Random:
        """Return the random stream of the next proposal."""
        return random.Random(f"{self._seed} {len(self)}")

    def unseen(self) -> Layers:
        """Return any candidate that was not proposed; `is_over` must be false."""
        for number in shuffled(self.candidates.count, self.stream()):
            layers = self.candidates[number]
            if layers not in self:
                return layers
        raise AssertionError("every candidate was proposed")


LISTED = 10_000


def shuffled(count: int, stream: random.Random) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, each once, without a list of them where they are many.

    Past half of many, numbers that are left get rare among the draws: they are listed then.
    """
    seen: set[int] = set()
    while len(seen) < (count // 2 if count > LISTED else 0):
        number = stream.randrange(count)
        if number not in seen:
            seen.add(number)
            yield number
    rest = [number for number in range(count) if number not in seen]
    stream.shuffle(rest)
    yield from rest
