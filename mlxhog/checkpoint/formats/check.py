"""Whether the tensors of a checkpoint are those of a model: every fault is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import CheckpointError
from mlxhog.files.mapped import FLOATS

_SHOWN = 8


def check(
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
    *,
    dtypes: Sequence[np.dtype[Any]] = FLOATS,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Compare tensors with the parameters of a model; reads none of their numbers.

    Args:
        tensors: name -> array.
        expected: name -> shape of every parameter.
        where: the checkpoint, for the message.
        dtypes: the types that a parameter may have.
        hints: name -> what to do if it is missing.

    Raises:
        CheckpointError: some are missing, superfluous, misshapen or of another type; they are all
            named, up to a few.
    """
    hints = hints or {}
    faults = [f"{name} is missing{hints.get(name, '')}" for name in expected if name not in tensors]
    faults += [f"{name} is superfluous" for name in tensors if name not in expected]
    for name in sorted(tensors.keys() & expected.keys()):
        array, shape = tensors[name], tuple(expected[name])
        if array.shape != shape:
            faults.append(f"{name} has shape {array.shape}, expected {shape}")
        elif array.dtype not in dtypes:
            wanted = " or ".join(dtype.name for dtype in dtypes)
            faults.append(f"{name} has type {array.dtype}, expected {wanted}")
    if faults:
        raise CheckpointError(
            f"{where} does not fit the model: {listed(faults)}; use the config that belongs to "
            "these tensors, or copy the checkpoint again if it is incomplete"
        )


def refuse_not_finite(names: Iterable[str], where: Path) -> None:
    """Name the tensors that hold NaN or an infinity.

    Raises:
        CheckpointError: there is one.
    """
    faults = [f"{name} holds numbers that are not finite" for name in names]
    if faults:
        raise CheckpointError(
            f"{where} is damaged: {listed(faults)}; use another checkpoint of the same model"
        )


def listed(faults: Sequence[str]) -> str:
    """Return the first few faults in one line, and how many more there are."""
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
