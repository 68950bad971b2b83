"""The candidates of a space at one width: their count, number n, and membership.

Candidates are counted without listing them. The bounds are on sums: every choice uses some of
every resource (one of its kind, parameters, state). The number of completions of a prefix depends
only on the remainder of every resource, so

    count(slot, left) = sum over the choices of the slot of count(slot + 1, left - use)

and prefixes with the same remainder are counted once. A remainder that no completion can exceed
counts as endless, which merges most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from mlxhog.errors import ConfigError
from mlxhog.mad.search.budget import Scale
from mlxhog.mad.search.space import Space
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical

Layers = tuple[Layer, ...]


class CandidateSet:
    """The sequences of a space within its counts and its budget at width d, in a fixed order.

    With `budget.rescale`, a candidate is a sequence of the space's choices (its *plan*), shrunk to
    fit; plans and candidates correspond one to one. State is counted after `length` tokens if the
    budget has no length.

    Raises:
        ConfigError: a layer cannot be built at this width, the space has no candidate, or a
            sequence of `start` is not in the space.
    """

    def __init__(self, space: Space, d: int, length: int) -> None:
        space = self.space = space.at_width(d)
        self.d = d
        self._scale = Scale(space.budget, d, length)
        self._limited = tuple(space.max_count)
        self._check_layers()
        self._bounds = (space.budget.params, space.budget.state)
        self._sequences = self._within(*self._bounds)
        if not self.count:
            raise ConfigError(self._why_none())
        for layers in space.start:
            if self.build(layers) is None:
                raise ConfigError(f"start has {canonical(layers)!r}, which is not in the space")

    @cached_property
    def count(self) -> int:
        """Number of candidates."""
        return sum(sequences.count() for sequences in self._sequences.values())

    def __getitem__(self, number: int) -> Layers:
        """Return candidate `number` from 0: shallow ones first, then by the order of choices.

        Raises:
            IndexError: the number is too large.
        """
        if not 0 <= number < self.count:
            raise IndexError(f"candidate {number} of {self.count}")
        for depth, sequences in self._sequences.items():
            if number < sequences.count():
                chosen = sequences.sequence(number)
                slots = self.space.slots(depth)
                plan = tuple(slot[which] for slot, which in zip(slots, chosen, strict=True))
                layers = self._scale.fit(plan)
                assert layers is not None  # its smallest version is within the budget
                return layers
            number -= sequences.count()
        raise AssertionError("counts do not add up")

    def __contains__(self, layers: object) -> bool:
        """Whether layers are a candidate."""
        return isinstance(layers, tuple) and self.plan(layers) is not None

    def build(self, plan: Sequence[Layer]) -> Layers | None:
        """Return the candidate of a plan; None if the plan is not in the space."""
        layers = tuple(plan)
        if len(layers) not in self._sequences:
            return None
        slots = self.space.slots(len(layers))
        if any(layer not in slot for layer, slot in zip(layers, slots, strict=True)):
            return None
        names = [layer.name for layer in layers]
        if any(names.count(name) > most for name, most in self.space.max_count.items()):
            return None
        if not self._scale.admits(layers):
            return None
        return self._scale.fit(layers)

    def plan(self, layers: Layers) -> Layers | None:
        """Return the plan of a candidate; None if the layers are not a candidate."""
        if len(layers) not in self._sequences:
            return None
        slots = self.space.slots(len(layers))
        choices = []
        for layer, slot in zip(layers, slots, strict=True):
            own = [choice for choice in slot if self._scale.same(choice, layer)]
            if not own:
                return None
            choices.append(own[0])
        return tuple(choices) if self.build(choices) == layers else None

    def unused(self) -> tuple[Layer, ...]:
        """Return the choices that no candidate has: their cost leaves no room for the rest."""
        return tuple(
            layer
            for layer in self.space.layers
            if not any(self._has(layer, depth) for depth in self._sequences)
        )

    def _has(self, layer: Layer, depth: int) -> bool:
        """Whether any candidate of a depth has a choice in any slot."""
        slots = self.space.slots(depth)
        for number, slot in enumerate(slots):
            if layer in slot:
                forced = [*slots[:number], (layer,), *slots[number + 1 :]]
                if self._sequences_of(forced, self._bounds).count():
                    return True
        return False

    def _within(self, params: int | None, state: int | None) -> dict[int, Sequences]:
        """The sequences of every depth within bounds; depths without a sequence are absent."""
        by_depth = {}
        for depth in self.space.depths:
            sequences = self._sequences_of(self.space.slots(depth), (params, state))
            if sequences.count():
                by_depth[depth] = sequences
        return by_depth

    def _sequences_of(self, slots: Sequence[Sequence[Layer]], bounds: Remainder) -> Sequences:
        most: Remainder = tuple(self.space.max_count[name] for name in self._limited)
        return Sequences([[self._use(layer) for layer in slot] for slot in slots], (*most, *bounds))

    def _use(self, layer: Layer) -> tuple[int, ...]:
        least = self._scale.least(layer)
        return (*(layer.name == name for name in self._limited), least.params, least.state)

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

    def _why_none(self) -> str:
        """Return how far the smallest sequences are above the budget, in words."""
        if not self._within(None, None):
            return (
                f"max_count {dict(self.space.max_count)} leaves no layer for some slot at depth "
                f"{self.space.depths[0]}; raise a count, or list more layers"
            )
        budget = self.space.budget
        excesses = []
        params = self._least(lambda bound: self._within(bound, None))
        state = self._least(lambda bound: self._within(None, bound))
        if budget.params is not None and params > budget.params:
            excesses.append(_over("params", params, budget.params))
        if budget.state is not None and state > budget.state:
            excesses.append(_over("state", state, budget.state))
        if not excesses and budget.params is not None and budget.state is not None:
            state = self._least(lambda bound: self._within(budget.params, bound))
            excesses = [
                f"{_over('state', state, budget.state)}, among those within "
                f"budget.params {budget.params:,}"
            ]
        ways = "raise the budget, or list smaller layers"
        if not budget.rescale:
            ways = "raise the budget, set budget.rescale, or list smaller layers"
        return f"no candidate is within the budget: {'; '.join(excesses)}; {ways}"

    @staticmethod
    def _least(within: Callable[[int], object]) -> int:
        """The smallest bound with a candidate."""
        high = 1
        while not within(high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(middle) else (middle, high)
        return high


def _over(name: str, least: int, budget: int) -> str:
    what = {"params": "number of parameters", "state": "state"}[name]
    return f"the smallest {what} is {least:,}, {least - budget:,} over budget.{name} {budget:,}"


Remainder = tuple[int | None, ...]
"""The rest of every resource; None is endless."""

Use = Sequence[int]
"""The use of every resource by a choice, each at least 0."""


class Sequences:
    """All sequences of one choice per slot within the bounds, in lexicographic order.

    Args:
        slots: the use of every choice of every slot; each slot has a choice.
        bounds: the amount of every resource; None is endless.
    """

    def __init__(self, slots: Sequence[Sequence[Use]], bounds: Remainder) -> None:
        self._slots = slots
        self._bounds = bounds
        self._most = [[0] * len(bounds)]
        self._least = [[0] * len(bounds)]
        for slot in reversed(slots):
            uses = list(zip(*slot, strict=True))  # by resource
            self._most.insert(0, [a + max(b) for a, b in zip(self._most[0], uses, strict=True)])
            self._least.insert(0, [a + min(b) for a, b in zip(self._least[0], uses, strict=True)])
        self._known: dict[tuple[int, Remainder], int] = {}

    def count(self) -> int:
        """Return the number of sequences."""
        return self._count(0, self._bounds)

    def sequence(self, number: int) -> tuple[int, ...]:
        """Return sequence `number` from 0, as the number of every slot's choice.

        Raises:
            IndexError: the number is too large.
        """
        if not 0 <= number < self.count():
            raise IndexError(f"sequence {number} of {self.count()}")
        choices: list[int] = []
        remainder = self._bounds
        for slot, uses in enumerate(self._slots):
            for which, use in enumerate(uses):
                after = _minus(remainder, use)
                if after is None:
                    continue
                below = self._count(slot + 1, after)
                if number < below:
                    choices.append(which)
                    remainder = after
                    break
                number -= below
        return tuple(choices)

    def _count(self, slot: int, remainder: Remainder) -> int:
        """Return the number of completions from a slot with a remainder."""
        most, least = self._most[slot], self._least[slot]
        if any(
            one is not None and one < needed for one, needed in zip(remainder, least, strict=True)
        ):
            return 0
        remainder = tuple(
            None if one is None or one >= enough else one
            for one, enough in zip(remainder, most, strict=True)
        )
        if slot == len(self._slots):
            return 1
        key = (slot, remainder)
        if key not in self._known:
            self._known[key] = sum(
                self._count(slot + 1, after)
                for use in self._slots[slot]
                if (after := _minus(remainder, use)) is not None
            )
        return self._known[key]


def _minus(remainder: Remainder, use: Use) -> Remainder | None:
    after = tuple(
        None if one is None else one - used for one, used in zip(remainder, use, strict=True)
    )
    return None if any(one is not None and one < 0 for one in after) else after
