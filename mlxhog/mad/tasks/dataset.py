"""The rows of a task, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows of one task; arrays are (rows, length) int32, targets aligned, -100 is ignored.

    Attributes:
        train_x: inputs to train on.
        train_y: their targets.
        test_x: inputs to score on.
        test_y: their targets.
        val_x: a third split, where one was asked for.
        val_y: its targets.
        kv_keys: memorization: the keys of its map.
        kv_values: their values, in the same order.
        meta: task, seed and every setting, under the names of the files.
    """

    train_x: Int32
    train_y: Int32
    test_x: Int32
    test_y: Int32
    val_x: Int32 | None = None
    val_y: Int32 | None = None
    kv_keys: Int32 | None = None
    kv_values: Int32 | None = None
    meta: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The task's full name."""
        return str(self.meta["task"])

    def splits(self) -> dict[str, tuple[Int32, Int32]]:
        """Inputs and targets by the name of the split: train, test and, where there is one, val."""
        found = {"train": (self.train_x, self.train_y), "test": (self.test_x, self.test_y)}
        if self.val_x is not None and self.val_y is not None:
            found["val"] = (self.val_x, self.val_y)
        return found
