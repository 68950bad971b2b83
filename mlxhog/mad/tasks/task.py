"""What a task is: its settings, and a function that draws rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.tasks.settings import Settings

IGNORED = -100
"""Target of a position that is neither trained on nor scored."""

Ints = NDArray[np.integer[Any]]
Rows = tuple[Ints, Ints]
"""Inputs and targets, (n, length) each; targets stand where they are predicted."""

Fixed = Mapping[str, Ints]
"""What all rows of a data set have in common, such as memorization's map."""


def nothing_fixed(settings: Any, rng: np.random.Generator) -> Fixed:
    """Return what rows have in common where they have nothing."""
    return {}


class Draw(Protocol):
    """How a task draws rows."""

    def __call__(
        self,
        s: Any,  # the task's own settings
        rng: np.random.Generator,
        n: int,
        *,
        train: bool,
        dense: bool,
        fixed: Fixed,
    ) -> Rows:
        """Draw n rows.

        Args:
            s: settings.
            rng: of a block of rows.
            n: how many.
            train: rows of the training kind; those to score differ in some tasks.
            dense: every position has a target, where the task is next-token prediction; else
                those that can be known. Rows are the same either way.
            fixed: what all rows have in common.
        """


@dataclass(frozen=True)
class TaskType:
    """One of the six.

    Attributes:
        name: full name.
        short: as tables have it.
        settings: dataclass of its options; the defaults are the benchmark's baseline.
        draw: draws n rows; see `Draw`.
        fixed: (settings, rng) -> what all rows have in common.
        backbone: of the model, one of `models.mad.config.BACKBONES`.
    """

    name: str
    short: str
    settings: type[Settings]
    draw: Draw
    fixed: Callable[[Any, np.random.Generator], Fixed] = nothing_fixed
    backbone: str = "language-model"
