"""A model's parameters in blocks, and how a block's elements group into lines, stripes and rows.

The theory's numbers differ so much between an embedding and a dense layer that one number for the
whole model says nothing. Blocks are those of `mlxhog/models/blocks.py`, which workers may take
apart, with what lies outside the layers told apart: the last norm, a table of positions, the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.layout import ALIGN_FLOATS, STRIPE_FLOATS
from mlxhog.models import families
from mlxhog.models.blocks import blocks
from mlxhog.models.families import ModelConfig

Int64 = NDArray[np.int64]

ELEMENT, LINE, STRIPE, ROW = GRAINS = ("element", "line", "stripe", "row")
"""What two updates may share: a float, 128 bytes, 4 KiB of the arena, a row of a matrix."""


@dataclass(frozen=True)
class Block:
    """Some parameters of a model that are reported together.

    Attributes:
        name: such as "embedding", "layer 0", "out_norm" or "head".
        cell: "mlstm" or "slstm" for a layer with that cell; else None.
        slots: where its parameters lie in the arena, ascending.
        row_sparse: whether its gradient is that of the rows a batch looks up.
    """

    name: str
    cell: str | None
    slots: tuple[Slot, ...]
    row_sparse: bool

    @property
    def parameters(self) -> int:
        """Number of its elements, n."""
        return sum(slot.size for slot in self.slots)

    def groups(self, grain: str) -> int:
        """Return the number of groups."""
        return self.parameters if grain == ELEMENT else len(self.firsts(grain))

    def firsts(self, grain: str) -> Int64:
        """Return the first element of every group, ascending from 0, (groups,) int64.

        Elements count from 0 over the block's parameters in the order of `slots`, without gaps. A
        vector is one row. Parameters that share a stripe of the arena share the group.
        """
        found, before, last = [], 0, -1
        for slot in self.slots:
            size, width = slot.size, 1
            if grain == LINE:
                width = ALIGN_FLOATS
            elif grain == ROW:
                width = size // slot.shape[0] if len(slot.shape) > 1 else size
            inside = np.arange(0, size, width, dtype=np.int64)
            if grain == STRIPE:
                first = slot.offset // STRIPE_FLOATS
                ends = np.arange(first, -(-(slot.offset + size) // STRIPE_FLOATS), dtype=np.int64)
                inside = np.maximum(0, ends * STRIPE_FLOATS - slot.offset)[first == last :]
                last = int(ends[-1])
            found.append(before + inside)
            before += size
        return np.concatenate(found)


def blocks_of(model: ModelConfig, slots: Mapping[str, Slot]) -> tuple[Block, ...]:
    """Return the blocks of a model, in the order in which the model uses them.

    Args:
        model: the architecture.
        slots: where its parameters lie, by name.
    """
    grouped: dict[tuple[str, str | None], list[Slot]] = {}
    for group in blocks(model):
        for parameter in group.params:
            name = group.name if group.is_layer else _outside(model, parameter)
            grouped.setdefault((name, group.cell), []).append(slots[parameter])
    return tuple(
        Block(
            name=name,
            cell=cell,
            slots=tuple(sorted(found, key=lambda slot: slot.offset)),
            row_sparse=all(slot.kind == "rows" for slot in found),
        )
        for (name, cell), found in grouped.items()
    )


def _outside(model: ModelConfig, parameter: str) -> str:
    """Name the block of a parameter that is in no layer."""
    if parameter == families.embedding(model):
        return "embedding"
    if parameter in (families.head(model), families.head_bias(model)):
        return "head"
    return parameter.rpartition(".")[0].rpartition(".")[2] or parameter
