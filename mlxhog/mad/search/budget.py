"""The cost of a candidate, its bounds, and the rescaling of candidates above a bound.

Fixed-state mixers are compared at equal state, so a space bounds parameters and state. A candidate
above a bound is rejected, or with `rescale` shrunk. Its state shrinks with more heads (they divide
that of a matrix memory), fewer states of a channel or slots, or a shorter window; its parameters
with narrower channel maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer


def params(layers: Iterable[Layer], d: int) -> int:
    """Return the number of parameters of layers at width d, each with its norm.

    It excludes embedding, head, positions and the decoder of the auto-encoder: they are the same in
    every candidate, and on large vocabularies they would hide the difference.
    """
    return sum(d + sum(spec.size for spec in layer.param_spec(d)) for layer in layers)


def state(layers: Iterable[Layer], d: int, length: int) -> int:
    """Return the numbers that layers of width d keep per sequence after `length` tokens."""
    return sum(sum(layer.state(d, length).values()) for layer in layers)


SHRINK: dict[str, Callable[[int], int]] = {
    "heads": lambda heads: 2 * heads,
    "states": lambda states: states // 2,
    "slots": lambda slots: slots // 2,
    "window": lambda window: window // 2,
}
"""Numbers of a layer that decide its state -> the number of the next smaller state."""
INNER_STEP = 16
"""Inner widths are multiples of this, as in the reference."""


@dataclass(frozen=True, kw_only=True)
class SizeBudget:
    """Bounds of one candidate; None for no bound.

    Attributes:
        params: parameters of its layers, see `params`.
        state: numbers kept per sequence.
        length: tokens after which state is counted; None is the longest row of the suite. It
            matters for caches that grow, such as that of attention.
        rescale: shrink candidates that are too large instead of rejecting them.
    """

    params: int | None = None
    state: int | None = None
    length: int | None = None
    rescale: bool = False


KEPT = 4096
"""Layers whose numbers are kept: a space has few, and a sampler builds each many times."""


@lru_cache(maxsize=KEPT)
def _cost(layers: tuple[Layer, ...], d: int, length: int) -> tuple[int, int]:
    return params(layers, d), state(layers, d, length)


class Scale:
    """A budget at width d; `length` is used if the budget has none."""

    def __init__(self, budget: SizeBudget, d: int, length: int) -> None:
        self.budget, self._d, self._length = budget, d, budget.length or length

    def cost(self, layers: Iterable[Layer]) -> tuple[int, int]:
        """Return parameters and state of layers without rescaling."""
        costs = [_cost((layer,), self._d, self._length) for layer in layers]
        return sum(one for one, _ in costs), sum(one for _, one in costs)

    def same(self, one: Layer, other: Layer) -> bool:
        """Whether two layers are equal in the numbers that `fit` never changes."""
        free = {*SHRINK, "inner"} if self.budget.rescale else set()
        numbers = {field.name for field in fields(one)} - free  # type: ignore[arg-type]
        return type(one) is type(other) and all(
            getattr(one, name) == getattr(other, name) for name in numbers
        )

    def fit(self, layers: Sequence[Layer]) -> tuple[Layer, ...] | None:
        """Return layers within the budget, rescaled if it allows that; None if they cannot be.

        The layer with the largest state shrinks first, to about half; of the channel maps the
        widest, by 16 units.
        """
        fitted, bounds = list(layers), (self.budget.params, self.budget.state)
        while any(b is not None and c > b for c, b in zip(self.cost(fitted), bounds, strict=True)):
            smaller = self._smaller(fitted) if self.budget.rescale else None
            if smaller is None:
                return None
            fitted[smaller[0]] = smaller[1]
        return tuple(fitted)

    def _smaller(self, layers: Sequence[Layer]) -> tuple[int, Layer] | None:
        """The next change: the number of a layer, and its smaller version."""
        bound = self.budget.state
        shrunk = [
            (self.cost([layer])[1], number, less)
            for number, layer in enumerate(layers)
            if bound is not None and (less := self._with_less_state(layer)) is not None
        ]
        narrowed = [
            (width, number, less)
            for number, layer in enumerate(layers)
            if (width := _width(layer, self._d))
            and (less := self._narrow(layer, width - INNER_STEP)) is not None
        ]
        over = bound is not None and self.cost(layers)[1] > bound
        changes = shrunk if over else narrowed or shrunk
        if not changes:
            return None
        return max(changes, key=lambda change: (change[0], -change[1]))[1:]

    def _with_less_state(self, layer: Layer) -> Layer | None:
        now: Any = layer
        for name, change in SHRINK.items():
            if _has(layer, name):
                less: Layer = replace(now, **{name: change(getattr(now, name))})
                if self._possible(less) and self.cost([less])[1] < self.cost([layer])[1]:
                    return less
        return None

    def _narrow(self, layer: Layer, inner: int) -> Layer | None:
        """A channel map with a smaller inner width; None if that width is not possible."""
        if inner < INNER_STEP:
            return None
        now: Any = layer
        less: Layer = replace(now, inner=inner // INNER_STEP * INNER_STEP)
        return less if self._possible(less) else None

    def _possible(self, layer: Layer) -> bool:
        try:
            layer.check(self._d)
        except ConfigError:
            return False
        return True


def _has(layer: Layer, name: str) -> bool:
    return name in {field.name for field in fields(layer)}  # type: ignore[arg-type]


def _width(layer: Layer, d: int) -> int:
    """Inner width of a channel map that has one, else 0."""
    if layer.kind != "channel" or not _has(layer, "inner"):
        return 0
    now: Any = layer
    width: int = now.width(d) if hasattr(now, "width") else now.inner
    return width
