"""Accuracy of predictions over a whole set of rows, and the best accuracy that is possible.

`acc_macro` is the multiclass accuracy of torchmetrics. The reference takes its mean over batches;
taken over the whole set it does not depend on their size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError, ShapeError
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]


def acc_token(targets: Ints, predictions: Ints) -> float:
    """Return the share of scored positions whose prediction is the target.

    Args:
        targets: of any shape; positions of -100 are not scored.
        predictions: token ids, same shape.

    Raises:
        ShapeError: the shapes differ.
        DataError: nothing is scored.
    """
    expected, predicted = _scored(targets, predictions)
    return float((expected == predicted).mean())


def acc_macro(targets: Ints, predictions: Ints) -> float:
    """Return the mean recall over the classes that occur as a target or as a prediction.

    A class that is predicted but never a target counts with recall 0: targets [0 0 0 1 1] and
    predictions [0 0 0 1 2] give (1 + 1/2 + 0) / 3. Arguments and errors as in `acc_token`.
    """
    expected, predicted = _scored(targets, predictions)
    classes = int(max(expected.max(), predicted.max())) + 1
    targets_of = np.bincount(expected, minlength=classes)
    right_of = np.bincount(expected[expected == predicted], minlength=classes)
    occurs = targets_of + np.bincount(predicted, minlength=classes) > 0
    return float((right_of[occurs] / np.maximum(targets_of[occurs], 1)).mean())


def ceiling(data: Dataset) -> float:
    """Return the best `acc_token` that these test rows allow.

    In memorization that is the share of test queries whose key stands in the training rows: the
    value of another key cannot be known. Elsewhere it is 1.
    """
    if data.task != "memorization":
        return 1.0
    known = np.unique(data.train_x[:, ::2][data.train_y[:, 1::2] != IGNORED])
    asked = data.test_x[:, ::2][data.test_y[:, 1::2] != IGNORED]
    return float(np.isin(asked, known).mean())


def unigram(data: Dataset) -> float:
    """Return the `acc_token` of the best answer that is always the same token."""
    scored = data.test_y[data.test_y != IGNORED]
    return float(np.bincount(scored).max() / len(scored))


def _scored(targets: Ints, predictions: Ints) -> tuple[Ints, Ints]:
    if targets.shape != predictions.shape:
        raise ShapeError(
            f"predictions have shape {predictions.shape}, targets {targets.shape}; "
            "predict every position of every row"
        )
    scored = targets != IGNORED
    if not scored.any():
        raise DataError(f"all {targets.size} targets are {IGNORED}, so nothing is scored")
    return targets[scored], predictions[scored]
