"""What a list of layers costs: parameters, and numbers kept while it reads a sequence."""

from __future__ import annotations

from collections.abc import Iterable

from mlxhog.models.mad.layer import Layer


def params(layers: Iterable[Layer], d: int) -> int:
    """Return the number of parameters of layers at width d, each with its norm.

    Embedding, head, positions and the decoder of the auto-encoder are not in it: every candidate
    has the same, and on large vocabularies they would hide the difference.
    """
    return sum(d + sum(spec.size for spec in layer.param_spec(d)) for layer in layers)


def state(layers: Iterable[Layer], d: int, length: int) -> int:
    """Return the numbers that layers of width d keep per sequence after `length` tokens."""
    return sum(sum(layer.state(d, length).values()) for layer in layers)
