"""Samplers decide which candidate is tried next: grid, random, evolution, or given candidates.

A sampler is a function of its seed and of what it was asked, told and reminded of: proposal number
n draws from a random stream of its own. So a study that is resumed rebuilds its sampler by
`recall` and `tell` from the records, in their order, and with one candidate at a time goes on
exactly as if it had never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Protocol

from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError
from mlxhog.mad.search.candidates import Candidates, Layers
from mlxhog.mad.search.history import History, shuffled
from mlxhog.mad.search.space import Space
from mlxhog.mad.search.tpe import TPE
from mlxhog.models.mad.layer import Layer


class Sampler(Protocol):
    """Proposes candidates; one process uses it."""

    def ask(self) -> Layers | None:
        """Return a candidate that was never proposed; None when the space has no more."""

    def tell(self, layers: Layers, score: float) -> None:
        """Take the score of a candidate, in the order in which candidates end."""

    def recall(self, layers: Layers) -> None:
        """Take note of a candidate that was proposed before, by a sampler that is gone."""


class Listed:
    """A sampler of given architectures, in their order."""

    def __init__(self, candidates: list[Layers]) -> None:
        self._left = iter(candidates)

    def ask(self) -> Layers | None:
        """Return the next one."""
        return next(self._left, None)

    def tell(self, layers: Layers, score: float) -> None:
        """Ignore the score."""

    def recall(self, layers: Layers) -> None:
        """Go on after it."""
        self.ask()


class WithHistory:
    """What samplers share that remember their proposals and scores.

    Args:
        candidates: the space.
        seed: of everything that is drawn.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        self._history = History(candidates, seed)

    def tell(self, layers: Layers, score: float) -> None:
        """Keep the score."""
        self._history.tell(layers, score)

    def recall(self, layers: Layers) -> None:
        """Keep the proposal."""
        self._history.propose(layers)


class Grid(WithHistory):
    """Proposes every candidate in the order of the space.

    Args:
        candidates: the space.
        seed: of no effect.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        super().__init__(candidates, seed)
        self._next = 0

    def ask(self) -> Layers | None:
        """Return the next candidate that was not proposed."""
        candidates = self._history.candidates
        while self._next < candidates.count:
            layers = candidates[self._next]
            self._next += 1
            if layers not in self._history:
                return self._history.propose(layers)
        return None


class RandomSampler(WithHistory):
    """Proposes every candidate in an order that depends on the seed alone.

    Args:
        candidates: the space.
        seed: of the order.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        super().__init__(candidates, seed)
        self._order = shuffled(candidates.count, random.Random(f"{seed}"))

    def ask(self) -> Layers | None:
        """Return the next candidate of the order."""
        for number in self._order:
            layers = self._history.candidates[number]
            if layers not in self._history:
                return self._history.propose(layers)
        return None


TRIES = 64
"""Changes that may lead out of the space, or to what is known, before a random candidate."""


class Evolution(WithHistory):
    """Proposes changes to good candidates of the recent past.

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
        super().__init__(candidates, seed)
        self._population = population
        self._sample = sample

    def ask(self) -> Layers | None:
        """Return a candidate of `start`, a child of a good one, or a random one."""
        if self._history.is_over:
            return None
        return self._history.propose(self._started() or self._child() or self._history.unseen())

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
        scores = self._history.told
        living = list(scores)[-self._population :]
        if not living or len(self._history) < self._population:
            return None
        for _ in range(TRIES):
            task_rows = stream.sample(living, min(self._sample, len(living)))
            plan = candidates.plan(max(task_rows, key=scores.__getitem__))
            assert plan is not None  # told candidates are of this space
            child = candidates.build(mutate(plan, candidates.space, stream))
            if child is not None and child not in self._history:
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


SAMPLERS: Mapping[str, Callable[[Candidates, int], Sampler]] = {
    "grid": Grid,
    "random": RandomSampler,
    "evolution": Evolution,
    "tpe": TPE,
}
"""Every sampler by its name."""


def make_sampler(name: str, candidates: Candidates, seed: int) -> Sampler:
    """Make a sampler.

    Args:
        name: a key of `SAMPLERS`.
        candidates: the space.
        seed: of everything it draws.

    Raises:
        ConfigError: no such sampler.
        EnvironmentLacks: it needs a package that is not installed.
    """
    if name not in SAMPLERS:
        near = did_you_mean(name, SAMPLERS)
        raise ConfigError(f"sampler is {name!r}; choose one of {', '.join(SAMPLERS)}{near}")
    return SAMPLERS[name](candidates, seed)
