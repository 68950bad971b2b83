"""The candidates of a space at one width: numbered sequences of layers, and membership.

All sequences of the space have numbers: shallow ones first, then by the order of choices. Those
above a bound (of a count, of parameters, of state) are rejected. A small space with bounds is
listed; in a large one candidates are drawn until one is within the bounds, and their number is
unknown.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import prod

from mlxhog.errors import ConfigError
from mlxhog.mad.search.budget import Scale
from mlxhog.mad.search.space import Space
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical

Layers = tuple[Layer, ...]

LISTED = 50_000
"""Most sequences of a space with bounds that are all tried, in less than a second."""
TRIES = 10_000
"""Most draws for one candidate of a space that is not listed."""


class CandidateSet:
    """The sequences of a space within its counts and its budget at width d, in a fixed order.

    With `budget.rescale`, a candidate is a sequence of the space's choices (its *plan*), shrunk to
    fit; plans and candidates correspond one to one. State is counted after `length` tokens if the
    budget has no length.

    Attributes:
        count: number of candidates; None for a large space with bounds.
        numbers: `candidate` has these numbers from 0 on.
        first: a candidate, the first one of a space that is listed.

    Raises:
        ConfigError: a layer cannot be built at this width, the space has no candidate, or a
            sequence of `start` is not in the space.
    """

    def __init__(self, space: Space, d: int, length: int) -> None:
        space = self.space = space.at_width(d)
        self.d = d
        self._scale = Scale(space.budget, d, length)
        self._check_layers()
        sizes = {depth: prod(map(len, space.slots(depth))) for depth in space.depths}
        self._sizes = {depth: size for depth, size in sizes.items() if size}
        self.numbers = sum(self._sizes.values())
        budget = space.budget
        self._plans: dict[Layers, Layers] | None = None  # candidate -> plan, of a listed space
        self.count: int | None = self.numbers
        if space.max_count or budget.params is not None or budget.state is not None:
            self._bound()
        self.first = self._first()
        for layers in space.start:
            if self.build(layers) is None:
                raise ConfigError(f"start has {canonical(layers)!r}, which is not in the space")

    def _bound(self) -> None:
        """List the candidates of a small space with bounds; those of a large one stay uncounted."""
        if self.numbers > LISTED:
            self.count = None
            return
        plans = map(self._sequence, range(self.numbers))
        self._plans = {layers: plan for plan in plans if (layers := self.build(plan)) is not None}
        self._listed = list(self._plans)
        self.count = self.numbers = len(self._listed)

    def candidate(self, number: int) -> Layers | None:
        """Return the candidate of a number; None if that sequence is above a bound."""
        return (
            self._listed[number] if self._plans is not None else self.build(self._sequence(number))
        )

    def _sequence(self, number: int) -> Layers:
        """Return a sequence of choices by its number, whatever the bounds."""
        depths = iter(self._sizes.items())
        depth, size = next(depths)
        while number >= size:
            number -= size
            depth, size = next(depths)
        chosen = []
        for slot in reversed(self.space.slots(depth)):
            number, which = divmod(number, len(slot))
            chosen.append(slot[which])
        return tuple(reversed(chosen))

    def build(self, plan: Sequence[Layer]) -> Layers | None:
        """Return the candidate of a plan; None if the plan is not in the space."""
        layers = tuple(plan)
        if len(layers) not in self._sizes:
            return None
        slots = self.space.slots(len(layers))
        if any(layer not in slot for layer, slot in zip(layers, slots, strict=True)):
            return None
        return self._scale.fit(layers) if self._counts_hold(layers) else None

    def _counts_hold(self, layers: Layers) -> bool:
        names = [layer.name for layer in layers]
        return all(names.count(name) <= most for name, most in self.space.max_count.items())

    def plan(self, layers: Layers) -> Layers | None:
        """Return the plan of a candidate; None if the layers are not a candidate."""
        if self._plans is not None:
            return self._plans.get(layers)
        if len(layers) not in self._sizes:
            return None
        choices = []
        for layer, slot in zip(layers, self.space.slots(len(layers)), strict=True):
            own = [choice for choice in slot if self._scale.same(choice, layer)]
            if not own:
                return None
            choices.append(own[0])
        return tuple(choices) if self.build(choices) == layers else None

    def unused(self) -> tuple[Layer, ...]:
        """Return the choices that no candidate of a listed space has: their cost leaves no room."""
        if self._plans is None:
            return ()
        used = {layer for plan in self._plans.values() for layer in plan}
        return tuple(layer for layer in self.space.layers if layer not in used)

    def _check_layers(self) -> None:
        choices = self.space.layers
        for number, layer in enumerate(choices):
            try:
                layer.check(self.d)
            except ConfigError as error:
                raise ConfigError(f"{layer.name} at width {self.d}: {error}") from error
            for other in choices[:number]:
                if self._scale.same(layer, other):
                    raise ConfigError(
                        f"{canonical([other])} and {canonical([layer])} differ in nothing that "
                        "budget.rescale keeps; leave one out, or rescale out"
                    )

    def _first(self) -> Layers:
        """Return a candidate.

        Raises:
            ConfigError: none of the tried sequences is within the bounds; the message has the
                smallest sizes among them.
        """
        stream = random.Random(0)
        whole = self._plans is not None
        total = sum(self._sizes.values())
        tried = range(total) if total <= LISTED else [stream.randrange(total) for _ in range(TRIES)]
        kept = []
        for number in tried:
            plan = self._sequence(number)
            if (layers := self.build(plan)) is not None:
                return layers
            if self._counts_hold(plan):
                kept.append(self._scale.cost(plan))
        budget, space = self.space.budget, self.space
        if not kept:
            raise ConfigError(
                f"max_count {dict(space.max_count)} leaves no candidate; raise a count, or list "
                "more layers"
            )
        least = zip(("params", "state"), zip(*kept, strict=True), strict=True)
        sizes = [
            f"the smallest {name} is {min(values):,}, {min(values) - bound:,} over budget.{name} "
            f"{bound:,}"
            for name, values in least
            if (bound := getattr(budget, name)) is not None and min(values) > bound
        ]
        why = ", ".join(sizes) or "none is within budget.params and budget.state at once"
        of = "" if whole else f" in {TRIES:,} draws"
        raise ConfigError(f"no candidate is within the budget{of}: {why}; raise it, or list others")
