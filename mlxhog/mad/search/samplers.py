"""Samplers choose the next candidate: grid, random, evolution, TPE, or a list of candidates.

The proposals of a sampler depend only on its seed and the calls before: proposal number n draws
from a random stream of its own. So a resumed study rebuilds its sampler by `recall` and `tell` from
the records, in their order, and with one candidate at a time continues as if it had never stopped.
"""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mlxhog.errors import ConfigError, EnvironmentLacks, did_you_mean
from mlxhog.mad.search.candidates import CandidateSet, Layers
from mlxhog.mad.search.space import Space
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical

if TYPE_CHECKING:
    import optuna


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
        self.scores: dict[Layers, float] = {}  # in the order of `tell`

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
        """Record the first score of a candidate."""
        self.recall(layers)
        self.scores.setdefault(layers, score)

    def recall(self, layers: Layers) -> None:
        """Record the proposal."""
        self.proposed[layers] = None

    @property
    def is_over(self) -> bool:
        """Whether every candidate was proposed."""
        return len(self.proposed) >= self.candidates.count

    def is_new(self, layers: Layers | None) -> bool:
        """Whether a candidate was not proposed."""
        return layers is not None and layers not in self.proposed

    def stream(self) -> random.Random:
        """Return the random stream of the next proposal."""
        return random.Random(f"{self._seed} {len(self.proposed)}")

    def unseen(self, order: Iterable[int]) -> Layers | None:
        """Return the first candidate that was not proposed, in an order of numbers."""
        return next((c for c in map(self.candidates.__getitem__, order) if self.is_new(c)), None)

    def any_unseen(self) -> Layers | None:
        """Return any candidate that was not proposed."""
        return self.unseen(shuffled(self.candidates.count, self.stream()))


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
        self._order: Iterator[int] = iter(range(candidates.count))

    def choose(self) -> Layers | None:
        """Return the next candidate of the order."""
        return self.unseen(self._order)


class RandomSampler(Grid):
    """Proposes every candidate in an order that depends on the seed alone."""

    def __init__(self, candidates: CandidateSet, seed: int) -> None:
        super().__init__(candidates, seed)
        self._order = shuffled(candidates.count, random.Random(f"{seed}"))


MOST_CHANGES = 64
"""Changes that may leave the space or repeat a candidate, before a random candidate is taken."""


class Evolution(SpaceSampler):
    """Proposes changes to good recent candidates.

    Parents are among the last `population` candidates that ended, and as many are proposed before
    the first child. The best of `sample` random ones becomes the parent.
    """

    def __init__(
        self, candidates: CandidateSet, seed: int, *, population: int = 16, sample: int = 4
    ) -> None:
        super().__init__(candidates, seed)
        self._population = population
        self._sample = sample

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
        if not parents or len(self.proposed) < self._population:
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


MOST_TRIALS = 24
"""Proposals that may leave the space or repeat a candidate, before a random one is taken."""


class TPE(SpaceSampler):
    """Tree-structured Parzen estimator: layers frequent in good candidates and rare in bad ones.

    It is Optuna's, by ask and tell: the depth and every slot are categorical choices. Candidates
    are random until `start` of them have ended.
    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS.
    """

    def __init__(self, candidates: CandidateSet, seed: int, *, start: int = 10) -> None:
        try:
            import optuna
        except ImportError as error:
            raise EnvironmentLacks(
                "sampler tpe needs Optuna, which is not installed; "
                "python -m pip install optuna, or take --sampler evolution"
            ) from error
        super().__init__(candidates, seed)
        self._start = start
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize")
        self._trials: dict[Layers, int] = {}

    def choose(self) -> Layers | None:
        """Return an estimated candidate, or a random one."""
        if self.is_over:
            return None
        estimated = self._estimated() if len(self.scores) >= self._start else None
        return estimated or self.any_unseen()

    def tell(self, layers: Layers, score: float) -> None:
        """Tell Optuna a score."""
        is_first = layers not in self.scores
        super().tell(layers, score)
        if is_first:
            self._study.tell(self._trials[layers], score)

    def recall(self, layers: Layers) -> None:
        """Give Optuna a running trial of the candidate."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        plan = self.candidates.plan(layers)
        assert plan is not None  # recalled candidates are of this space
        if layers in self._trials:
            return
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(words) for name, words in self._words(len(plan)).items()
        }
        values = [str(len(plan)), *(canonical([layer]) for layer in plan)]
        self._trials[layers] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(distributions, values, strict=True)),
                distributions=distributions,
            )
        )
        super().recall(layers)

    def _estimated(self) -> Layers | None:
        """A candidate of Optuna's; None if it only suggests repeated or impossible ones."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                # Candidates in training count as bad, so that their neighbours are not crowded.
                constant_liar=True,
                n_startup_trials=0,
                seed=self.stream().randrange(2**32),
            )
        for _ in range(MOST_TRIALS):
            trial = self._study.ask()
            layers = self.candidates.build(self._suggested(trial))
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # it has a trial of its own
            if self.is_new(layers):
                return layers
        return None

    def _suggested(self, trial: optuna.Trial) -> list[Layer]:
        space = self.candidates.space
        depth = int(trial.suggest_categorical("depth", [str(depth) for depth in space.depths]))
        layers = []
        for (name, words), choices in zip(
            list(self._words(depth).items())[1:], space.slots(depth), strict=True
        ):
            layers.append(choices[words.index(trial.suggest_categorical(name, words))])
        return layers

    def _words(self, depth: int) -> dict[str, list[str]]:
        """Name -> the possible words: of the depth, and of every slot of a plan."""
        space = self.candidates.space
        words = {"depth": [str(depth) for depth in space.depths]}
        for slot, choices in enumerate(space.slots(depth)):
            words[f"slot {slot}"] = [canonical([layer]) for layer in choices]
        return words


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
        EnvironmentLacks: it needs a package that is not installed.
    """
    if name not in SAMPLERS:
        near = did_you_mean(name, SAMPLERS)
        raise ConfigError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}{near}")
    return SAMPLERS[name](candidates, seed)
