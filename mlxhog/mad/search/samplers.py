"""Samplers decide which candidate is tried next: grid, random, evolution, TPE, or given candidates.

A sampler is a function of its seed and of what it was asked, told and reminded of: proposal number
n draws from a random stream of its own. So a study that is resumed rebuilds its sampler by
`recall` and `tell` from the records, in their order, and with one candidate at a time goes on
exactly as if it had never stopped.
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
        """Return a candidate that was never proposed; None when the space has no more."""

    @abstractmethod
    def recall(self, layers: Layers) -> None:
        """Take note of a candidate that was proposed before, by a sampler that is gone."""

    @abstractmethod
    def tell(self, layers: Layers, score: float) -> None:
        """Take the score of a candidate, in the order in which candidates end."""


class ListSampler(CandidateSampler):
    """A sampler of given architectures, in their order."""

    def __init__(self, candidates: list[Layers]) -> None:
        self._rest = iter(candidates)

    def ask(self) -> Layers | None:
        """Return the next one."""
        return next(self._rest, None)

    def recall(self, layers: Layers) -> None:
        """Go on after it."""
        self.ask()

    def tell(self, layers: Layers, score: float) -> None:
        """Ignore the score."""


class SpaceSampler(CandidateSampler):
    """A sampler of a space, with what it has proposed and the scores that came."""

    def __init__(self, candidates: CandidateSet, seed: int) -> None:
        self.candidates, self._seed = candidates, seed
        self.proposed: dict[Layers, None] = {}
        self.scores: dict[Layers, float] = {}  # in the order in which they came

    def ask(self) -> Layers | None:
        """Return what is chosen next."""
        layers = self.choose()
        if layers is not None:
            self.recall(layers)
        return layers

    @abstractmethod
    def choose(self) -> Layers | None:
        """Return a candidate that was not proposed; None when there is no more."""

    def tell(self, layers: Layers, score: float) -> None:
        """Keep the score; the first one of a candidate counts."""
        self.recall(layers)
        self.scores.setdefault(layers, score)

    def recall(self, layers: Layers) -> None:
        """Keep the proposal."""
        self.proposed[layers] = None

    @property
    def is_over(self) -> bool:
        """Whether every candidate was proposed."""
        return len(self.proposed) >= self.candidates.count

    def is_new(self, layers: Layers | None) -> bool:
        """Whether this is a candidate that was not proposed."""
        return layers is not None and layers not in self.proposed

    def stream(self) -> random.Random:
        """Return the random stream of the next proposal."""
        return random.Random(f"{self._seed} {len(self.proposed)}")

    def unseen(self, order: Iterable[int]) -> Layers | None:
        """Return the first candidate, by the order of their numbers, that was not proposed."""
        return next((c for c in map(self.candidates.__getitem__, order) if self.is_new(c)), None)

    def any_unseen(self) -> Layers | None:
        """Return any candidate that was not proposed."""
        return self.unseen(shuffled(self.candidates.count, self.stream()))


LISTED = 10_000


def shuffled(count: int, stream: random.Random) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, each once, without a list of them where they are many.

    Past half of many, numbers that are left get rare among the draws: they are listed then.
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
"""Changes that may lead out of the space, or to what is known, before a random candidate."""


class Evolution(SpaceSampler):
    """Proposes changes to good candidates of the recent past.

    The `population` of candidates that may have children are the latest to end, and so many are
    proposed before the first child. The best of `sample` of them becomes the parent.
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
        """A change to a good one; None while too few are known, or where none leads anywhere."""
        candidates, stream, scores = self.candidates, self.stream(), self.scores
        parents = list(scores)[-self._population :]
        if not parents or len(self.proposed) < self._population:
            return None
        for _ in range(MOST_CHANGES):
            drawn = stream.sample(parents, min(self._sample, len(parents)))
            plan = candidates.plan(max(drawn, key=scores.__getitem__))
            assert plan is not None  # told candidates are of this space
            child = candidates.build(mutate(plan, candidates.space, stream))
            if self.is_new(child):
                return child
        return None


Plan = tuple[Layer, ...]
Mutation = Callable[[Plan, Space, random.Random], Plan]


def mutate(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Return a plan after one change; it may be equal, or outside of the space's bounds."""
    return stream.choice(MUTATIONS)(plan, space, stream)


def replaced(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Put another choice into one slot."""
    slot = stream.randrange(len(plan))
    others = [layer for layer in space.slots(len(plan))[slot] if layer != plan[slot]]
    return (*plan[:slot], stream.choice(others), *plan[slot + 1 :]) if others else plan


def swapped(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Let two layers that differ, and may stand in each other's slot, change places."""
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


def inserted(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Put new layers in; delete others where the depth is not possible."""
    longer = _insert(plan, space, stream)
    return longer if len(longer) in space.depths else _delete(longer, space, stream)


def deleted(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Take layers out; insert others where the depth is not possible."""
    shorter = _delete(plan, space, stream)
    return shorter if len(shorter) in space.depths else _insert(shorter, space, stream)


MUTATIONS: tuple[Mutation, ...] = (replaced, swapped, inserted, deleted)


def _unit(space: Space) -> int:
    return 2 if space.template == "alternate" else 1


def _insert(plan: Plan, space: Space, stream: random.Random) -> Plan:
    unit = _unit(space)
    slots = space.slots(unit)
    if not all(slots):
        return plan  # one layer deep: there are no channel maps to insert
    at = unit * stream.randrange(len(plan) // unit + 1)
    return (*plan[:at], *(stream.choice(slot) for slot in slots), *plan[at:])


def _delete(plan: Plan, space: Space, stream: random.Random) -> Plan:
    unit = _unit(space)
    if len(plan) < unit:
        return plan
    at = unit * stream.randrange(len(plan) // unit)
    return (*plan[:at], *plan[at + unit :])


MOST_TRIALS = 24
"""Proposals that may lie outside of the space, or be known, before a random candidate."""


class TPE(SpaceSampler):
    """Tree-structured Parzen estimator: what good candidates have in each slot and bad ones lack.

    Optuna's, by ask and tell: the depth and every slot is one categorical choice. CandidateSet are
    random until `start` of them have ended.
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
        """A candidate of Optuna's; None where it keeps to what is known or not allowed."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                # Those that are being trained count as bad, so that neighbours are not crowded.
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
        """What a plan consists of: the possible words of its depth and of every slot, by name."""
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
    """Make a sampler, by a key of `SAMPLERS`; the seed is of everything it draws.

    Raises:
        ConfigError: no such sampler.
        EnvironmentLacks: it needs a package that is not installed.
    """
    if name not in SAMPLERS:
        near = did_you_mean(name, SAMPLERS)
        raise ConfigError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}{near}")
    return SAMPLERS[name](candidates, seed)
