"""A search space: which layers may stand where in a candidate, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlxhog.mad.search.budget import Budget
from mlxhog.models.mad.layer import Layer, to_dict
from mlxhog.models.mad.sequence import canonical

TEMPLATES = ("alternate", "free")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Which sequences of layers are candidates; every default is resolved.

    Attributes:
        depths: numbers of layers, rising.
        template: "alternate" begins with a mixer and changes kind from layer to layer.
        mixers: choices of a mixer's slot; all of their numbers are spelt out.
        channels: choices of a channel map's slot.
        max_count: name of a layer -> how many of it one candidate may have, whatever its numbers.
        budget: bounds of one candidate.
        start: candidates that an evolution begins with.
        dim: width d; None is the suite's.
        position: positional embedding.
        suite: what candidates are measured on, where the command does not say.
    """

    depths: tuple[int, ...]
    template: str = "alternate"
    mixers: tuple[Layer, ...]
    channels: tuple[Layer, ...]
    max_count: Mapping[str, int] = field(default_factory=dict)
    budget: Budget = Budget()
    start: tuple[tuple[Layer, ...], ...] = ()
    dim: int | None = None
    position: str = "none"
    suite: str | None = None

    def slots(self, depth: int) -> list[tuple[Layer, ...]]:
        """Return the choices of every layer of a candidate of that depth."""
        if self.template == "free":
            return [self.mixers + self.channels] * depth
        return [(self.mixers, self.channels)[slot % 2] for slot in range(depth)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that YAML and JSON take; equal spaces have equal ones."""
        return {
            "depth": list(self.depths),
            "template": self.template,
            "mixers": [to_dict(layer) for layer in self.mixers],
            "channels": [to_dict(layer) for layer in self.channels],
            "max_count": dict(sorted(self.max_count.items())),
            "budget": asdict(self.budget),
            "start": [canonical(layers) for layers in self.start],
            "dim": self.dim,
            "position": self.position,
            "suite": self.suite,
        }
