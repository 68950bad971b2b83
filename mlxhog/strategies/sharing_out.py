"""Which blocks go together: a model's blocks in groups of about the same size.

Where a model mixes mLSTM and sLSTM layers, no group holds both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlxhog.errors import ConfigError
from mlxhog.models.blocks import Block, blocks
from mlxhog.models.families import ModelConfig


def groups(cfg: ModelConfig, workers: int) -> list[list[Block]]:
    """Blocks in groups for `workers` workers: one group more, so that a worker can always change.

    Raises:
        ConfigError: the model has too few blocks.
    """
    if workers == 1:
        return [blocks(cfg)]
    wanted, found = workers + 1, blocks(cfg)
    if len(found) < wanted:
        raise ConfigError(
            f"blocks=disjoint hands out the model's {len(found)} blocks (embedding, layers, head) "
            f"in {wanted} groups, one more than the {workers} workers; take at most "
            f"{len(found) - 1} workers, or a model with more layers"
        )
    layers: dict[str, list[Block]] = {}
    for block in found:
        if block.is_layer:
            layers.setdefault(block.cell or "", []).append(block)
    rest = sorted((block for block in found if not block.is_layer), key=lambda block: -block.size)
    ways = (_grouped(layers, rest, wanted, alone) for alone in range(len(rest) + 1))
    even = (way for way in ways if len(way) == wanted)
    return min(even, key=lambda way: max(map(_size, way)))


def _grouped(
    layers: Mapping[str, Sequence[Block]], rest: Sequence[Block], wanted: int, alone: int
) -> list[list[Block]]:
    """Groups of layers, where the first `alone` of the rest are groups of their own."""
    made = [[block] for block in rest[:alone]]
    for cell, n in _quotas(layers, wanted - alone).items():
        made += _balanced(layers[cell], n)
    for block in rest[alone:]:
        min(made, key=_size).append(block)
    return made


def _quotas(layers: Mapping[str, Sequence[Block]], wanted: int) -> dict[str, int]:
    """How many groups the layers of each cell make: by size, at least one, at most one a layer."""
    quotas = dict.fromkeys(layers, 1)
    while sum(quotas.values()) < wanted:
        divisible = [cell for cell, n in quotas.items() if n < len(layers[cell])]
        if not divisible:
            break
        quotas[max(divisible, key=lambda cell: _size(layers[cell]) / quotas[cell])] += 1
    return quotas


def _balanced(found: Sequence[Block], n: int) -> list[list[Block]]:
    """`n` groups: the largest block first, each into the smallest group."""
    made: list[list[Block]] = [[] for _ in range(n)]
    for block in sorted(found, key=lambda block: -block.size):
        min(made, key=_size).append(block)
    return made


def _size(group: Sequence[Block]) -> int:
    return sum(block.size for block in group)
