"""What the labels of examples are: signs, classes, or plain numbers."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets.arrays import refuse_first
from mlxhog.errors import DataError

LabelKind = Literal["signs", "classes", "numbers"]
"""`signs`: -1 or +1. `classes`: 0 .. n_classes - 1. `numbers`: the targets of a regression."""

KINDS: tuple[LabelKind, ...] = ("signs", "classes", "numbers")


def check_labels(labels: NDArray[np.float32], kind: str, n_classes: int) -> None:
    """Refuse labels that are not of their kind, naming the first row that has one.

    Args:
        labels: (rows,) finite float32.
        kind: one of `LabelKind`.
        n_classes: number of classes; 2 for signs, 0 for numbers.

    Raises:
        DataError: a label is not of its kind; the message says how to map it.
    """
    if kind not in KINDS:
        raise DataError(f"labels are called {kind!r}; wanted one of {', '.join(KINDS)}")
    wanted = {"signs": n_classes == 2, "numbers": n_classes == 0, "classes": n_classes >= 2}
    if not wanted[kind]:
        raise DataError(f"labels are {kind}, but there are {n_classes} classes of them")
    if kind == "signs":
        refuse_first(
            np.abs(labels) != 1.0,
            lambda row: (
                f"row {row} has label {labels[row]:g}; wanted -1 or +1. {how_to_map(labels)}"
            ),
        )
    elif kind == "classes":
        refuse_first(
            (labels < 0) | (labels >= n_classes) | (labels != np.floor(labels)),
            lambda row: (
                f"row {row} has label {labels[row]:g}; wanted a class of 0..{n_classes - 1}"
            ),
        )


def how_to_map(labels: NDArray[np.floating[Any]]) -> str:
    """The way out where labels are no signs; in its example the last one becomes +1."""
    found = np.unique(labels)
    if len(found) > 8:
        return "Map the labels there are, or take the problem least-squares if they are numbers"
    signs = ["-1"] * (len(found) - 1) + ["+1"]
    pairs = (f"{label:g}={sign}" for label, sign in zip(found, signs, strict=True))
    return f"Map the labels there are, such as --labels {','.join(pairs)}"
