"""Local SGD that remembers the last average, from which a round began: the anchor.

segment  dtype    meaning
anchor   float32  the last average; each worker writes its share of it, in a meeting
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from mlxhog.arena import Arena
from mlxhog.backends.backend import Float32
from mlxhog.optim import updates
from mlxhog.optim.updates import Rows
from mlxhog.strategies.local_sgd import LocalSGD
from mlxhog.strategies.rounds import Rounds

ANCHOR: Final = "anchor"


def keep_anchor(strategy: Anchored, arena: Arena, rounds: Rounds, rank: int) -> None:
    """Stage of a meeting, when the parameters are whole: a share of them becomes the anchor."""
    span = strategy.share(arena, rank)
    np.copyto(arena.segment(ANCHOR)[span], arena.params[span])


def dense(grad: Float32 | Rows, shape: tuple[int, ...]) -> Float32:
    """A copy of a gradient with all of its elements."""
    if not isinstance(grad, Rows):
        return grad.copy()
    whole = np.zeros(shape, np.float32)
    np.add.at(whole, grad.index, grad.values)
    return whole


class Anchored(LocalSGD):
    """Local SGD with an anchor."""

    def kept_segments(self) -> tuple[str, ...]:
        """The copies and the anchor."""
        return (*super().kept_segments(), ANCHOR)

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start at the parameters, which are the first anchor."""
        super().begin(arena, position)
        if position is None:
            updates.snapshot(arena.segment(ANCHOR), arena.params)
