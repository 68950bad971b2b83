"""The rows of a task, in memory and as an .npz file; and the accuracy of predictions.

A file has the format of the golden data:

    train_inputs, train_targets, test_inputs, test_targets [, val_inputs, val_targets]
                             (rows, length) int16 if every id fits, else int32
    kv_keys, kv_values       memorization's map
    grammar                  selective grammar's: the state after each state and token, -1 for none
    meta                     JSON: task, seed and every setting

`acc_macro` is the multiclass accuracy of torchmetrics, over the whole set. The reference takes the
mean over batches, which depends on their size.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.durable import replace_file, require_space
from mlxhog.data.batch import IGNORED
from mlxhog.errors import DataError
from mlxhog.mad.tasks.task import Ints

Int32 = NDArray[np.int32]

ByLength = tuple[tuple[int, float], ...]
"""Ends of the parts of scored rows with the accuracy in each part, see `acc_by_length`."""

LENGTH_ACCURACY = 0.99


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows of one task; arrays are (rows, length) int32, targets aligned, -100 is ignored."""

    train_x: Int32  # inputs to train on
    train_y: Int32  # their targets
    test_x: Int32  # inputs to score on
    test_y: Int32  # their targets
    val_x: Int32 | None = None  # a third split, if requested
    val_y: Int32 | None = None  # its targets
    kv_keys: Int32 | None = None  # the keys of memorization's map
    kv_values: Int32 | None = None  # their values, in the same order
    grammar: Int32 | None = None  # selective grammar's, (states, tokens)
    meta: Mapping[str, Any]  # task, seed and every setting, under the names of the files

    def splits(self) -> dict[str, tuple[Int32, Int32]]:
        """Inputs and targets by the name of the split: train, test, and val if there is one."""
        splits = {"train": (self.train_x, self.train_y), "test": (self.test_x, self.test_y)}
        if self.val_x is not None and self.val_y is not None:
            splits["val"] = (self.val_x, self.val_y)
        return splits

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ends of the parts of a test row whose accuracies are reported; () for one part.

        The first part is as long as a row to train on; the next ones end at powers of two.
        """
        short, long = self.train_x.shape[1], self.test_x.shape[1]
        if long <= short:
            return ()
        powers = (2**k for k in range(short.bit_length(), long.bit_length()))
        return tuple(dict.fromkeys((short, *powers, long)))


def write(path: Path, data: Dataset) -> int:
    """Write a data set and return its size in bytes; readers see the whole file or none."""
    common = ("kv_keys", "kv_values", "grammar")
    arrays = {name: part for name in common if (part := getattr(data, name)) is not None}
    for split, (x, y) in data.splits().items():
        arrays |= {f"{split}_inputs": x, f"{split}_targets": y}
    narrow = np.int16 if max(array.max() for array in arrays.values()) < 2**15 else np.int32
    stored: dict[str, Any] = {name: array.astype(narrow) for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **stored, meta=np.array(json.dumps(data.meta, sort_keys=True)))
    require_space(path.absolute().parent, content.tell(), str(path))
    replace_file(path.absolute(), content.getvalue())
    return content.tell()


def acc_token(targets: Ints, predictions: Ints) -> float:
    """Return the share of scored positions with the right prediction.

    Positions with the target -100 are not scored; a DataError if all have it. `predictions` are
    token ids of the same shape.
    """
    expected, predicted = _scored(targets, predictions)
    return float((expected == predicted).mean())


def acc_macro(targets: Ints, predictions: Ints) -> float:
    """Return the mean recall over the classes among targets and predictions.

    A class that is only predicted counts with recall 0: targets [0 0 0 1 1] and
    predictions [0 0 0 1 2] give (1 + 1/2 + 0) / 3. Arguments and errors as of `acc_token`.
    """
    expected, predicted = _scored(targets, predictions)
    classes = int(max(expected.max(), predicted.max())) + 1
    targets_of = np.bincount(expected, minlength=classes)
    right_of = np.bincount(expected[expected == predicted], minlength=classes)
    occurs = targets_of + np.bincount(predicted, minlength=classes) > 0
    return float((right_of[occurs] / np.maximum(targets_of[occurs], 1)).mean())


def _scored(targets: Ints, predictions: Ints) -> tuple[Ints, Ints]:
    scored = targets != IGNORED
    if not scored.any():
        raise DataError(f"all {targets.size} targets are {IGNORED}, so no position is scored")
    return targets[scored], predictions[scored]


def acc_by_length(data: Dataset, predictions: Ints) -> ByLength:
    """Return each end of `data.lengths` with the `acc_token` of the test positions up to it.

    The positions begin at the end before; parts without a scored position are left out.
    """
    return tuple(
        (end, acc_token(y, predictions[:, begin:end]))
        for begin, end in pairwise((0, *data.lengths))
        if ((y := data.test_y[:, begin:end]) != IGNORED).any()
    )


def generalization_length(by_length: ByLength) -> int:
    """Return the length up to which every part has the accuracy `LENGTH_ACCURACY`, or 0."""
    return max(
        (end for end, _ in takewhile(lambda part: part[1] >= LENGTH_ACCURACY, by_length)), default=0
    )


def best_achievable(data: Dataset) -> float:
    """Return the best achievable `acc_token` of these test rows.

    In memorization it is the share of test queries whose key is in the training rows, since the
    value of another key is unknown. In other tasks it is 1.
    """
    if data.meta["task"] != "memorization":
        return 1.0
    known_keys = np.unique(data.train_x[:, ::2][data.train_y[:, 1::2] != IGNORED])
    queries = data.test_x[:, ::2][data.test_y[:, 1::2] != IGNORED]
    return float(np.isin(queries, known_keys).mean())


def majority_accuracy(data: Dataset) -> float:
    """Return the `acc_token` of always predicting the most frequent target."""
    scored = data.test_y[data.test_y != IGNORED]
    return float(np.bincount(scored).max() / len(scored))
