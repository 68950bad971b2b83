"""Token ids and labels that a model of V rows can take: an id outside would read foreign memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import IGNORED, Batch
from mlxhog.errors import DataError

Int32 = NDArray[np.int32]


def check_tokens(tokens: Int32, vocab_size: int) -> None:
    """Check tokens (B, S).

    Raises:
        DataError: there are none, or one is outside the vocabulary; it is named with its place.
    """
    if tokens.ndim != 2 or not tokens.size:
        raise DataError(
            f"tokens have shape {tokens.shape}, expected (B, S) with at least one sequence and one "
            "position; begin an empty text with the BOS token"
        )
    _check("token", tokens, vocab_size)


def check_batch(batch: Batch, vocab_size: int) -> None:
    """Check the tokens and labels of a batch.

    Raises:
        DataError: see `check_tokens`; or the labels are of another shape.
    """
    check_tokens(batch.x, vocab_size)
    if batch.y.shape != batch.x.shape:
        raise DataError(
            f"labels have shape {batch.y.shape}, tokens {batch.x.shape}; give every position a "
            f"label, {IGNORED} where there is nothing to predict"
        )
    _check("label", np.where(batch.y == IGNORED, 0, batch.y), vocab_size)


def _check(what: str, ids: Int32, vocab_size: int) -> None:
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
    raise DataError(
        f"{what} {ids[row, position]} at position {position} of sequence {row} is outside the "
        f"vocabulary of {vocab_size} ids; use the model's own tokenizer"
    )
