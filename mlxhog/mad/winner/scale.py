"""A sequence made deeper: copies on top of each other, or every part repeated where it stands.

With L layers in units u1 .. um (single layers, or blocks of a mixer and a channel map):

    stack     u1 u2 .. um u1 u2 .. um ..         whole copies; the last one may be cut
    stretch   u1 u1 .. u2 u2 .. um um ..         unit j of M is u[j m // M]: proportions are kept

Composer stacked what it searched at 6 layers, and stretched what it searched at 16 and more.

Source: Composer, Acun et al. 2025, arXiv:2510.00379.
"""

from __future__ import annotations

from typing import Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer

How = Literal["stack", "stretch"]
HOWS: tuple[How, ...] = ("stack", "stretch")


def unit_of(layers: tuple[Layer, ...]) -> int:
    """Return 2 for a sequence of blocks, each a mixer and then a channel map; 1 for any other."""
    kinds = [layer.kind for layer in layers]
    return 2 if kinds == ["mixer", "channel"] * (len(kinds) // 2) else 1


def scaled(layers: tuple[Layer, ...], depth: int, how: How, unit: int) -> tuple[Layer, ...]:
    """Return a sequence of `depth` layers.

    Args:
        layers: the sequence, at most `depth` of them.
        depth: wanted number of layers.
        how: see the module.
        unit: layers that stay together; divides both numbers.

    Raises:
        ConfigError: the depth is not possible; it names possible ones.
    """
    if depth < len(layers):
        raise ConfigError(
            f"depth {depth} is less than the {len(layers)} layers there are; give {len(layers)} or "
            "more"
        )
    if depth % unit or len(layers) % unit:
        below = depth - depth % unit
        raise ConfigError(
            f"depth {depth} is no whole number of blocks of {unit} layers; give {below} or "
            f"{below + unit}, or --unit layer"
        )
    units = [layers[k : k + unit] for k in range(0, len(layers), unit)]
    m, M = len(units), depth // unit
    numbers = [j % m if how == "stack" else j * m // M for j in range(M)]
    return tuple(layer for number in numbers for layer in units[number])
