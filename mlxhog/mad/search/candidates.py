"""The candidates of a space at one width: numbered sequences of layers, and membership.

All sequences of the space have numbers: shallow ones first, then by the order of choices. Those
above a bound (of a count, of parameters, of state) are rejected. A small space with bounds is
listed; in a large one candidates are drawn until one is within the bounds, and their number is
unknown.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

from mlxhog.errors import ConfigError
from mlxhog.mad.run import params, state
from mlxhog.mad.search.space import Space
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.layers import at_width
from mlxhog.models.mad.sequence import canonical

Layers = tuple[Layer, ...]

LISTED = 50_000
"""Most sequences of a space with bounds that are all tried, in less than a second."""
TRIES = 10_000
"""Most draws for one candidate of a space that is not listed."""


@lru_cache(maxsize=4096)  # a space has few layers, and a sampler draws each many times
def _sizes(layer: Layer, d: int, length: int) -> tuple[int, int]:
    return params([layer], d), state([layer], d, length)


class Listed:
    """Architectures as candidates: their number `count`, and the `first` one."""

    def __init__(self, architectures: Sequence[Layers]) -> None:
        self.numbers = len(architectures)
        self.count: int | None = self.numbers
        self.candidate, self.first = architectures.__getitem__, architectures[0]


class CandidateSet:
    """The sequences of a space within its counts and its budget at width d, in a fixed order.

    State is counted after `length` tokens if the budget has no length.

    Attributes:
        count: number of candidates; None for a large space with bounds.
        numbers: `candidate` has these numbers from 0 on.
        first: a candidate, the first one of a space that is listed.
        block: the choices of every layer of the part that repeats, at this width.
        starts: the first candidates of an evolution.

    Raises:
        ConfigError: a layer cannot be built at this width, the space has no candidate, or a
            sequence of `start` is not in the space.
    """

    def __init__(self, space: Space, d: int, length: int) -> None:
        self.space, self.d, self._length = space, d, space.bounds.get("length", length)
        self.block = space.block_at(d)
        self.starts = [at_width(layers, d) for layers in space.starts]
        for layer in dict.fromkeys(itertools.chain(*self.block)):
            try:
                layer.check(d)
            except ConfigError as error:
                raise ConfigError(f"{layer.name} at width {d}: {error}") from error
        depths = {depth: prod(map(len, self.slots(depth))) for depth in space.depths}
        self._depths = {depth: size for depth, size in depths.items() if size}
        self.numbers = total = sum(self._depths.values())
        self.count: int | None = total
        self._listed: list[Layers] | None = None
        within: Iterator[Layers] = filter(self._is_within, map(self._sequence, range(total)))
        if space.counts or {"params", "state"} & space.bounds.keys():
            self.count = None
            if total <= LISTED:
                self._listed = list(within)
                self.count = self.numbers = len(self._listed)
                within = iter(self._listed)
            else:
                stream = random.Random(0)
                drawn = (self._sequence(stream.randrange(total)) for _ in range(TRIES))
                within = filter(self._is_within, drawn)
        first = next(within, None)
        if first is None:
            of = "" if total <= LISTED else f" in {TRIES:,} draws"
            raise ConfigError(
                f"no candidate is within max_count and budget{of}; raise a bound, or list other "
                "layers; mlxhog mad show prints the parameters and the state of a sequence"
            )
        self.first = first
        for layers in self.starts:
            if layers not in self:
                raise ConfigError(f"start has {canonical(layers)!r}, which is not in the space")

    def slots(self, depth: int) -> list[tuple[Layer, ...]]:
        """Return the choices of every layer of a candidate of that depth."""
        return list(itertools.islice(itertools.cycle(self.block), depth))

    def candidate(self, number: int) -> Layers | None:
        """Return the candidate of a number; None if that sequence is above a bound."""
        if self._listed is not None:
            return self._listed[number]
        layers = self._sequence(number)
        return layers if self._is_within(layers) else None

    def __contains__(self, layers: Layers) -> bool:
        """Whether a sequence is a candidate."""
        return (
            len(layers) in self._depths
            and all(map(lambda one, slot: one in slot, layers, self.slots(len(layers))))
            and self._is_within(layers)
        )

    def _sequence(self, number: int) -> Layers:
        """Return a sequence of choices by its number, whatever the bounds."""
        depths = iter(self._depths.items())
        depth, size = next(depths)
        while number >= size:
            number -= size
            depth, size = next(depths)
        chosen = []
        for slot in reversed(self.slots(depth)):
            number, which = divmod(number, len(slot))
            chosen.append(slot[which])
        return tuple(reversed(chosen))

    def _is_within(self, layers: Layers) -> bool:
        names = [layer.name for layer in layers]
        if any(names.count(name) > most for name, most in self.space.counts.items()):
            return False
        sizes = zip(*(_sizes(layer, self.d, self._length) for layer in layers), strict=True)
        bounds = self.space.bounds.get("params"), self.space.bounds.get("state")
        return all(
            bound is None or sum(own) <= bound for bound, own in zip(bounds, sizes, strict=True)
        )
