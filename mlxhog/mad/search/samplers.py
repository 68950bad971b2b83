"""Samplers choose the next candidate: grid, random, evolution, TPE, or a list of candidates.

The proposals of a sampler depend only on its seed and the calls before: proposal number n draws
from a random stream of its own. So a resumed study rebuilds its sampler by `recall` and `tell` from
the records, in their order, and with one candidate at a time continues as if it had never stopped.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from mlxhog.errors import ConfigError, did_you_mean
from mlxhog.mad.search.candidates import TRIES, CandidateSet, Layers
from mlxhog.mad.search.space import Space

T = TypeVar("T")


class CandidateSampler(ABC):
    """Proposes candidates; one process uses it."""

    @abstractmethod
    def ask(self) -> Layers | None:
        """Return a candidate that was never proposed; None at the end of the space."""

    @abstractmethod
    def recall(self, layers: Layers) -> None:
        """Record a candidate that was proposed in an earlier session."""

    @abstractmethod
    def tell(self, layers: Layers, score: float) -> None:
        """Record the score of a candidate, in the order in which candidates end."""


class ListSampler(CandidateSampler):
    """A sampler of a list of architectures, in their order."""

    def __init__(self, candidates: list[Layers]) -> None:
        self._rest = iter(candidates)

    def ask(self) -> Layers | None:
        """Return the next architecture."""
        return next(self._rest, None)

    def recall(self, layers: Layers) -> None:
        """Skip one architecture."""
        self.ask()

    def tell(self, layers: Layers, score: float) -> None:
        """Ignore the score."""


class SpaceSampler(CandidateSampler):
    """A sampler of a space, with its proposals and their scores."""

    def __init__(self, candidates: CandidateSet, seed: int) -> None:
        self.candidates, self._seed = candidates, seed
        self.proposed: dict[Layers, None] = {}
        self.scores: dict[Layers, float] = {}  # in the order of the first `tell`

    def ask(self) -> Layers | None:
        """Return the next candidate, and record it."""
        layers = self.choose()
        if layers is not None:
            self.recall(layers)
        return layers

    @abstractmethod
    def choose(self) -> Layers | None:
        """Return a candidate that was not proposed; None at the end of the space."""

    def tell(self, layers: Layers, score: float) -> None:
        """Record the score of a candidate; a later one, of repeated runs, takes its place."""
        self.recall(layers)
        self.scores[layers] = score

    def recall(self, layers: Layers) -> None:
        """Record the proposal."""
        self.proposed[layers] = None

    @property
    def is_over(self) -> bool:
        """Whether every candidate was proposed."""
        count = self.candidates.count
        return count is not None and len(self.proposed) >= count

    def is_new(self, layers: Layers | None) -> bool:
        """Whether a candidate was not proposed."""
        return layers is not None and layers not in self.proposed

    def stream(self) -> random.Random:
        """Return the random stream of the next proposal."""
        return random.Random(f"{self._seed} {len(self.proposed)}")

    def unseen(self, order: Iterable[int]) -> Layers | None:
        """Return the first candidate that was not proposed, in an order of numbers.

        Where candidates are not counted, the search for one ends after some tries.
        """
        tries = islice(order, None if self.candidates.count is not None else TRIES)
        return next((c for c in map(self.candidates.candidate, tries) if self.is_new(c)), None)

    def any_unseen(self) -> Layers | None:
        """Return any candidate that was not proposed."""
        return self.unseen(shuffled(self.candidates.numbers, self.stream()))


LISTED = 10_000


def shuffled(count: int, stream: random.Random) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, each once; for large counts without a full list.

    After half of a large count, few draws are new numbers, so the rest is listed and shuffled.
    """
    drawn: set[int] = set()
    while len(drawn) < (count // 2 if count > LISTED else 0):
        number = stream.randrange(count)
        if number not in drawn:
            drawn.add(number)
            yield number
    rest = [number for number in range(count) if number not in drawn]
    stream.shuffle(rest)
    yield from rest


class Grid(SpaceSampler):
    """Proposes every candidate in the order of the space; the seed has no effect."""

    def __init__(self, candidates: CandidateSet, seed: int) -> None:
        super().__init__(candidates, seed)
        self._order: Iterator[int] = iter(range(candidates.numbers))

    def choose(self) -> Layers | None:
        """Return the next candidate of the order."""
        return self.unseen(self._order)


class RandomSampler(Grid):
    """Proposes every candidate in an order that depends on the seed alone."""

    def __init__(self, candidates: CandidateSet, seed: int) -> None:
        super().__init__(candidates, seed)
        self._order = shuffled(candidates.numbers, random.Random(f"{seed}"))


MOST_CHANGES = 64
"""Changes that may leave the space or repeat a candidate, before a random candidate is taken."""


class Evolution(SpaceSampler):
    """Proposes changes to good recent candidates.

    Parents are among the last `population` candidates that ended; the best of `sample` random ones
    becomes the parent. `start` candidates are proposed before the first child. With few candidates
    a large sample finds more: see `benchmarks/samplers.py`.

    Source: Real et al. 2019, Regularized Evolution, arXiv:1802.01548.
    """

    def __init__(
        self,
        candidates: CandidateSet,
        seed: int,
        *,
        population: int = 16,
        sample: int = 8,
        start: int = 10,
    ) -> None:
        super().__init__(candidates, seed)
        self._population, self._sample, self._start = population, sample, start

    def choose(self) -> Layers | None:
        """Return a candidate of `start`, a child of a good one, or a random one."""
        if self.is_over:
            return None
        return self._from_start() or self._child() or self.any_unseen()

    def _from_start(self) -> Layers | None:
        plans = map(self.candidates.build, self.candidates.space.start)
        return next((layers for layers in plans if self.is_new(layers)), None)

    def _child(self) -> Layers | None:
        """A changed good candidate; None while there are too few, or if no change is new."""
        candidates, stream, scores = self.candidates, self.stream(), self.scores
        parents = list(scores)[-self._population :]
        if not parents or len(self.proposed) < self._start:
            return None
        for _ in range(MOST_CHANGES):
            drawn = stream.sample(parents, min(self._sample, len(parents)))
            plan = candidates.plan(max(drawn, key=scores.__getitem__))
            assert plan is not None  # its candidates are of this space
            child = candidates.build(mutate(plan, candidates.space, stream))
            if self.is_new(child):
                return child
        return None


Mutation = Callable[[Layers, Space, random.Random], Layers]


def mutate(plan: Layers, space: Space, stream: random.Random) -> Layers:
    """Return a plan after one change; it may be equal, or outside the space's bounds."""
    return stream.choice(MUTATIONS)(plan, space, stream)


def replaced(plan: Layers, space: Space, stream: random.Random) -> Layers:
    """Put another choice into one slot."""
    slot = stream.randrange(len(plan))
    others = [layer for layer in space.slots(len(plan))[slot] if layer != plan[slot]]
    return (*plan[:slot], stream.choice(others), *plan[slot + 1 :]) if others else plan


def swapped(plan: Layers, space: Space, stream: random.Random) -> Layers:
    """Swap two different layers that are possible in each other's slot."""
    slots = space.slots(len(plan))
    pairs = [
        (a, b)
        for b in range(len(plan))
        for a in range(b)
        if plan[a] != plan[b] and plan[a] in slots[b] and plan[b] in slots[a]
    ]
    if not pairs:
        return plan
    a, b = stream.choice(pairs)
    layers = list(plan)
    layers[a], layers[b] = plan[b], plan[a]
    return tuple(layers)


def inserted(plan: Layers, space: Space, stream: random.Random) -> Layers:
    """Insert layers; delete others if the depth is not possible."""
    longer = _insert(plan, space, stream)
    return longer if len(longer) in space.depths else _delete(longer, space, stream)


def deleted(plan: Layers, space: Space, stream: random.Random) -> Layers:
    """Delete layers; insert others if the depth is not possible."""
    shorter = _delete(plan, space, stream)
    return shorter if len(shorter) in space.depths else _insert(shorter, space, stream)


MUTATIONS: tuple[Mutation, ...] = (replaced, swapped, inserted, deleted)


def _insert(plan: Layers, space: Space, stream: random.Random) -> Layers:
    slots = space.block
    unit = len(slots)
    if not all(slots):
        return plan  # one layer deep: there are no channel maps to insert
    at = unit * stream.randrange(len(plan) // unit + 1)
    return (*plan[:at], *(stream.choice(slot) for slot in slots), *plan[at:])


def _delete(plan: Layers, space: Space, stream: random.Random) -> Layers:
    unit = len(space.block)
    if len(plan) < unit:
        return plan
    at = unit * stream.randrange(len(plan) // unit)
    return (*plan[:at], *plan[at + unit :])


GOOD = 0.2
MOST_GOOD = 25
DRAWS = 24
MOST_DRAWS = 20 * DRAWS
"""Draws that may leave the space or repeat a candidate, before a random candidate is taken."""

Choice = tuple[str, object]
"""A choice of a plan: the name of its depth or of a slot, and the number or the layer there."""


class TPE(SpaceSampler):
    """Tree-structured Parzen estimator: choices frequent in good candidates and rare in others.

    The depth and every slot are categorical. Good are the best fifth of the candidates that ended,
    25 at most; candidates in training count among the others, so that their neighbours are not
    crowded. A frequency counts one observation more, spread evenly over all choices. Of 24 new
    candidates drawn from the frequencies of the good ones, the one with the largest product of
    ratios, good to others, is proposed. Candidates are random until `start` of them have ended.

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS.
    """

    def __init__(self, candidates: CandidateSet, seed: int, *, start: int = 10) -> None:
        super().__init__(candidates, seed)
        self._start = start
        self._plans: dict[Layers, Layers] = {}

    def recall(self, layers: Layers) -> None:
        """Record the proposal and its plan."""
        if layers not in self._plans:
            plan = self.candidates.plan(layers)
            assert plan is not None  # recalled candidates are of this space
            self._plans[layers] = plan
        super().recall(layers)

    def choose(self) -> Layers | None:
        """Return an estimated candidate, or a random one."""
        if self.is_over:
            return None
        estimated = self._estimated() if len(self.scores) >= self._start else None
        return estimated or self.any_unseen()

    def _estimated(self) -> Layers | None:
        """The best of some draws; None if they only repeat candidates or leave the space."""
        stream = self.stream()
        ranked = sorted(self.scores, key=self.scores.__getitem__, reverse=True)
        good = ranked[: min(MOST_GOOD, math.ceil(GOOD * len(ranked)))]
        others = self._plans.keys() - good
        ratio = _Ratio(self.candidates.space, *(
            [self._plans[layers] for layers in own] for own in (good, others)
        ))  # fmt: skip
        drawn: dict[Layers, float] = {}
        tried = set[Layers]()
        for _ in range(MOST_DRAWS):
            plan = ratio.draw(stream)
            if plan in tried:  # a budget makes `build` slow
                continue
            tried.add(plan)
            layers = self.candidates.build(plan)
            if layers is not None and self.is_new(layers):
                drawn[layers] = ratio.log(plan)
            if len(drawn) == DRAWS:
                break
        return max(drawn, key=drawn.__getitem__, default=None)


class _Ratio:
    """The frequencies of choices in good plans, and their ratios to those in other plans."""

    def __init__(self, space: Space, good: list[Layers], others: list[Layers]) -> None:
        self._space, self._good = space, good
        self._in_good, self._in_others = _Frequencies(good), _Frequencies(others)

    def draw(self, stream: random.Random) -> Layers:
        """Return a plan of the frequencies in good plans."""
        depth = self._pick([len(plan) for plan in self._good], self._space.depths, stream)
        deep = [plan for plan in self._good if len(plan) == depth]
        return tuple(
            self._pick([plan[slot] for plan in deep], layers, stream)
            for slot, layers in enumerate(self._space.slots(depth))
        )

    @staticmethod
    def _pick(seen: Sequence[T], possible: Sequence[T], stream: random.Random) -> T:
        """One of those seen, or, as one observation more, any possible one."""
        return stream.choice(seen if stream.randrange(len(seen) + 1) else possible)

    def log(self, plan: Layers) -> float:
        """Return the logarithm of the product of a plan's ratios."""
        sizes = [len(self._space.depths), *map(len, self._space.slots(len(plan)))]
        return sum(
            self._in_good.log(choice, size) - self._in_others.log(choice, size)
            for choice, size in zip(_choices(plan), sizes, strict=True)
        )


class _Frequencies:
    """How often the plans that have a slot have each choice in it."""

    def __init__(self, plans: Iterable[Layers]) -> None:
        choices = [choice for plan in plans for choice in _choices(plan)]
        self._counts, self._slots = Counter(choices), Counter(name for name, _ in choices)

    def log(self, choice: Choice, size: int) -> float:
        """Return the logarithm of the frequency of one of `size` choices."""
        return math.log((self._counts[choice] + 1 / size) / (self._slots[choice[0]] + 1))


def _choices(plan: Layers) -> list[Choice]:
    return [("depth", len(plan)), *((f"slot {slot}", layer) for slot, layer in enumerate(plan))]


SAMPLERS: Mapping[str, Callable[[CandidateSet, int], CandidateSampler]] = {
    "grid": Grid,
    "random": RandomSampler,
    "evolution": Evolution,
    "tpe": TPE,
}
"""Every sampler by its name."""


def make_sampler(name: str, candidates: CandidateSet, seed: int) -> CandidateSampler:
    """Make a sampler, by a key of `SAMPLERS`; the seed decides all its draws.

    Raises:
        ConfigError: no such sampler.
    """
    if name not in SAMPLERS:
        near = did_you_mean(name, SAMPLERS)
        raise ConfigError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}{near}")
    return SAMPLERS[name](candidates, seed)
