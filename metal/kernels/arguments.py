"""Declaring the arguments of a kernel, and checking the shapes of what is given for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument


def arrays(names: str) -> tuple[Argument, ...]:
    """Declare float32 arrays, their names separated by spaces."""
    return tuple(Argument(name=name) for name in names.split())


def sizes(names: str) -> tuple[Argument, ...]:
    """Declare scalars of type uint."""
    return tuple(Argument(name=name, dtype="uint32", scalar=True) for name in names.split())


def check(kernel: str, given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare shapes with those that the other arguments ask for.

    Raises:
        ShapeError: one differs or is too large to index; nothing has been launched.
    """
    for name, shape in wanted.items():
        if math.prod(shape) >= 2**32:
            raise ShapeError(
                f"{kernel}: {name} of shape {shape} has 2^32 elements or more, and a kernel counts "
                "in 32 bits; run fewer sequences at once"
            )
        found = tuple(given[name].shape)
        if found != shape:
            raise ShapeError(
                f"{kernel}: {name} has shape {found}, the other arguments ask for {shape}; "
                "pass arrays of one model, batch and chunk size"
            )
