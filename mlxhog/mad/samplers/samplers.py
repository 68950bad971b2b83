"""Samplers choose the next candidate: grid, random, evolution, TPE, or a list of candidates.

The proposals of a sampler depend only on its seed and the calls before: proposal number n draws
from its own random generator. So a resumed study rebuilds its sampler by `register` and `tell` from
the records, in their order, and with one candidate at a time continues as if it had never stopped.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mlxhog.mad.samplers.space import MAX_DRAWS, CandidateList, CandidateSet, Layers

T = TypeVar("T")


class Sampler:
    """Proposes every candidate in the order of the space; others choose by seed and scores.

    One process uses it.
    """

    def __init__(self, candidates: CandidateSet | CandidateList, seed: int = 0) -> None:
        self.candidates, self._seed = candidates, seed
        self.proposed: dict[Layers, None] = {}  # every proposal, of earlier sessions, too
        self.scores: dict[Layers, float] = {}  # of ended candidates, in the order of their `tell`
        self._order: Iterator[int] = iter(range(candidates.numbers))

    def ask(self) -> Layers | None:
        """Return a new candidate, and record it as proposed; None at the end of the space."""
        layers = self._choose()
        if layers is not None:
            self.register(layers)
        return layers

    def _choose(self) -> Layers | None:
        return self._unseen(self._order)

    def tell(self, layers: Layers, score: float) -> None:
        """Record a candidate's score when it ends; that of repeated runs takes its place."""
        self.register(layers)
        self.scores[layers] = score

    def register(self, layers: Layers) -> None:
        """Record a proposal, such as one of an earlier session."""
        self.proposed[layers] = None

    def is_new(self, layers: Layers) -> bool:
        return layers not in self.proposed

    def _rng(self) -> random.Random:
        """Return the random generator of the next proposal."""
        return random.Random(f"{self._seed} {len(self.proposed)}")

    def _unseen(self, order: Iterable[int]) -> Layers | None:
        """Return the first candidate that was not proposed, in an order of numbers.

        Where candidates are not counted, the search for one ends after `MAX_DRAWS` numbers in a row
        without one; those proposed before do not count, so a resumed search continues.
        """
        n_rejected, is_counted = 0, self.candidates.count is not None
        for number in order:
            layers = self.candidates.candidate(number)
            if layers is not None and self.is_new(layers):
                return layers
            n_rejected = n_rejected + 1 if layers is None else 0
            if n_rejected == MAX_DRAWS and not is_counted:
                break
        return None


class RandomSampler(Sampler):
    """Proposes every candidate in an order that depends on the seed alone."""

    def __init__(self, candidates: CandidateSet | CandidateList, seed: int) -> None:
        super().__init__(candidates, seed)
        self._order = shuffled(candidates.numbers, random.Random(f"{seed}"))


SHORT = 10_000


def shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, each once; for large counts without a full list.

    After half of a large count, few draws are new numbers, so the rest is listed and shuffled.
    """
    drawn: set[int] = set()
    while len(drawn) < (count // 2 if count > SHORT else 0):
        number = rng.randrange(count)
        if number not in drawn:
            drawn.add(number)
            yield number
    rest = [number for number in range(count) if number not in drawn]
    rng.shuffle(rest)
    yield from rest


START = 10
"""Random candidates of a model-based sampler before its first suggestion."""


class ModelBasedSampler(Sampler):
    """A sampler that learns from the scores; it begins with random candidates."""

    candidates: CandidateSet

    def _choose(self) -> Layers | None:
        count = self.candidates.count
        if count is not None and len(self.proposed) >= count:
            return None
        return self.suggest() or self._unseen(shuffled(self.candidates.numbers, self._rng()))

    @abstractmethod
    def suggest(self) -> Layers | None:
        """Return a candidate chosen by the scores.

        None while they say too little, or if all draws leave the space or repeat a candidate.
        """


# -- evolution -------------------------------------------------------------------------------------

POPULATION, SAMPLE = 16, 8
MAX_CHANGES = 64


class Evolution(ModelBasedSampler):
    """Proposes changes to good recent candidates.

    Parents are among the last 16 candidates that ended; the best of 8 random ones becomes the
    parent. Candidates of the space's `start` are proposed first. With few candidates a large sample
    finds more: see `benchmarks/samplers.py`.

    Source: Real et al. 2019, Regularized Evolution, arXiv:1802.01548.
    """

    def suggest(self) -> Layers | None:
        for layers in filter(self.is_new, self.candidates.starts):
            return layers
        rng, scores = self._rng(), self.scores
        parents = list(scores)[-POPULATION:]
        if not parents or len(self.proposed) < START:
            return None
        for _ in range(MAX_CHANGES):
            drawn = rng.sample(parents, min(SAMPLE, len(parents)))
            parent = max(drawn, key=scores.__getitem__)
            child = rng.choice(MUTATIONS)(parent, self.candidates, rng)
            if child in self.candidates and self.is_new(child):
                return child
        return None


Mutation = Callable[[Layers, CandidateSet, random.Random], Layers]
"""A change of a candidate; the result may be equal, or outside the space's bounds."""


def replaced(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    """Put another choice into one slot."""
    slot = rng.randrange(len(parent))
    others = [layer for layer in space.slots(len(parent))[slot] if layer != parent[slot]]
    return (*parent[:slot], rng.choice(others), *parent[slot + 1 :]) if others else parent


def swapped(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    """Swap two different layers that are possible in each other's slot."""
    slots, layers = space.slots(len(parent)), list(parent)
    pairs = [
        (a, b)
        for b in range(len(parent))
        for a in range(b)
        if parent[a] != parent[b] and parent[a] in slots[b] and parent[b] in slots[a]
    ]
    if pairs:
        a, b = rng.choice(pairs)
        layers[a], layers[b] = parent[b], parent[a]
    return tuple(layers)


def inserted(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    """Insert layers; delete others if the depth is not possible."""
    longer = _with_block(parent, space, rng)
    return longer if len(longer) in space.depths else _without_block(longer, space, rng)


def deleted(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    """Delete layers; insert others if the depth is not possible."""
    shorter = _without_block(parent, space, rng)
    return shorter if len(shorter) in space.depths else _with_block(shorter, space, rng)


def _with_block(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    slots = space.block
    if not all(slots):
        return parent  # one layer deep: there are no channel mixers to insert
    at = len(slots) * rng.randrange(len(parent) // len(slots) + 1)
    return (*parent[:at], *map(rng.choice, slots), *parent[at:])


def _without_block(parent: Layers, space: CandidateSet, rng: random.Random) -> Layers:
    size = len(space.block)
    if len(parent) < size:
        return parent
    at = size * rng.randrange(len(parent) // size)
    return (*parent[:at], *parent[at + size :])


MUTATIONS: tuple[Mutation, ...] = (replaced, swapped, inserted, deleted)


# -- TPE -------------------------------------------------------------------------------------------

GOOD, MAX_GOOD = 0.2, 25
DRAWS = 24
MAX_ATTEMPTS = 20 * DRAWS


class TPE(ModelBasedSampler):
    """Tree-structured Parzen estimator: choices frequent in good candidates and rare in others.

    The depth and every slot are categorical. Good are the best fifth of the candidates that ended,
    25 at most; candidates in training count among the others, so that their neighbors are not
    crowded. A frequency counts one observation more, spread evenly over all choices. Of 24 new
    candidates drawn from the frequencies of the good ones, the one with the largest product of
    ratios, good to others, is proposed. Candidates are random until `START` of them have ended.

    Source: Bergstra et al. 2011, Algorithms for Hyperparameter Optimization, NeurIPS.
    """

    def suggest(self) -> Layers | None:
        if len(self.scores) < START:
            return None
        rng = self._rng()
        ranked = sorted(self.scores, key=self.scores.__getitem__, reverse=True)
        good = ranked[: min(MAX_GOOD, math.ceil(GOOD * len(ranked)))]
        others = [layers for layers in self.proposed if layers not in set(good)]
        drawn: dict[Layers, float] = {}
        for _ in range(MAX_ATTEMPTS):
            layers = self._draw(good, rng)
            if layers not in drawn and self.is_new(layers) and layers in self.candidates:
                drawn[layers] = self._log_ratio(layers, good, others)
            if len(drawn) == DRAWS:
                break
        return max(drawn, key=drawn.__getitem__, default=None)

    def _draw(self, good: list[Layers], rng: random.Random) -> Layers:
        depth = _pick([len(one) for one in good], self.candidates.depths, rng)
        deep = [one for one in good if len(one) == depth]
        return tuple(
            _pick([one[slot] for one in deep], layers, rng)
            for slot, layers in enumerate(self.candidates.slots(depth))
        )

    def _log_ratio(self, one: Layers, good: list[Layers], others: list[Layers]) -> float:
        sizes = [len(self.candidates.depths), *map(len, self.candidates.slots(len(one)))]
        return sum(
            math.log(_frequency(place, value, size, good))
            - math.log(_frequency(place, value, size, others))
            for (place, value), size in zip(enumerate([len(one), *one]), sizes, strict=True)
        )


def _pick(seen: Sequence[T], possible: Sequence[T], rng: random.Random) -> T:
    """Pick one of those seen, or, as one observation more, any possible one."""
    return rng.choice(seen if rng.randrange(len(seen) + 1) else possible)


def _frequency(place: int, value: object, size: int, among: list[Layers]) -> float:
    """Return the frequency of a depth (place 0) or of a layer in its slot, one of `size`."""
    values: list[object] = [[len(one), *one][place] for one in among if len(one) >= place]
    return (values.count(value) + 1 / size) / (len(values) + 1)


SAMPLERS: Mapping[str, Callable[[Any, int], Sampler]] = {
    "grid": Sampler,
    "random": RandomSampler,
    "evolution": Evolution,
    "tpe": TPE,
}
"""Every sampler by its name: makes it from candidates and the seed of all its draws."""
