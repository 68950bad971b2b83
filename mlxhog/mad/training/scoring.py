"""How many answers are right: predictions over the rows held out, and both accuracies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.backend import Backend
from mlxhog.mad.tasks import Dataset
from mlxhog.mad.tasks.accuracy import acc_macro, acc_token
from mlxhog.models.mad.config import MADConfig

MOST_NUMBERS = 1 << 22
"""Of the widest array of one piece: large enough for speed, small beside a gradient's."""

WIDEST_LAYER = 8
"""Times the model's width: about what the inside of a layer keeps of a position."""


@dataclass(frozen=True)
class Scores:
    """Accuracies over the scored positions, in [0, 1]; see `mad/scores/accuracy.py`.

    Those of the validation rows are None where none were drawn.
    """

    acc_token: float
    acc_macro: float
    val_token: float | None = None
    val_macro: float | None = None

    def deciding(self, select: str) -> tuple[float, float]:
        """Return both accuracies of the rows that decide, "test" or "val"."""
        if select == "test":
            return self.acc_token, self.acc_macro
        assert self.val_token is not None
        assert self.val_macro is not None
        return self.val_token, self.val_macro


def score(backend: Backend, rows: Dataset, model: MADConfig, *, beat: Callable[[], None]) -> Scores:
    """Score test and validation rows at the parameters in the backend's inbox.

    Args:
        backend: bound to the model.
        rows: of the task.
        model: whose sizes say how many rows are predicted at a time.
        beat: called after each piece.
    """
    found = {
        split: predict(backend, x, model, beat=beat)
        for split, (x, _) in rows.splits().items()
        if split != "train"
    }
    test = {"acc_token": acc_token(rows.test_y, found["test"])}
    test["acc_macro"] = acc_macro(rows.test_y, found["test"])
    if rows.val_y is None:
        return Scores(**test)
    return Scores(
        **test,
        val_token=acc_token(rows.val_y, found["val"]),
        val_macro=acc_macro(rows.val_y, found["val"]),
    )


def predict(
    backend: Backend, x: NDArray[np.int32], model: MADConfig, *, beat: Callable[[], None]
) -> NDArray[np.int32]:
    """Return the most likely token at every position of (rows, length), a piece at a time."""
    widest = max(model.vocab_size, WIDEST_LAYER * model.hidden_size)
    rows = max(1, MOST_NUMBERS // (widest * x.shape[1]))
    found = np.empty(x.shape, np.int32)
    for begin in range(0, len(x), rows):
        piece = np.ascontiguousarray(x[begin : begin + rows], np.int32)
        found[begin : begin + rows] = backend.predictions(piece)
        beat()
    return found
