"""The form of a native operator: two functions over NumPy arrays, one forward and one backward.

An adapter per framework turns a pair into a differentiable function of its arrays. Every array is
float32 and row-major. Only NumPy arrays reach `_native`: on a Mac an array of MLX says that it lies
in Metal's memory, which native code refuses, although the CPU can read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import ops

View = NDArray[Any]
"""The memory of a framework's array, for reading, or a result that native code has written."""

Views = Sequence[Any]
"""Several, some of them None where an operator says so."""


@dataclass(frozen=True, eq=False)
class Pair:
    """An operator and its gradient; both also take the operator's settings by name.

    Attributes:
        forward: (*inputs, keep, threads) -> the results, and the arrays that `backward` needs. An
            optional input may be None. Without `keep` no gradient follows, and nothing has to be
            saved.
        backward: (saved, d_results, needs, threads) -> a gradient per input. An entry of d_results
            is None for a result that was not used; at least one is an array. `needs` marks the
            inputs whose gradients are used; the others need not be computed.
        optional: whether an input may be None.
        saved_results: positions of the results that `backward` needs; in `saved` they follow the
            arrays of `forward`.
    """

    forward: Callable[..., tuple[Views, Views]]
    backward: Callable[..., Views]
    optional: bool = False
    saved_results: tuple[int, ...] = ()


def empty_like(*arrays: Any) -> list[Any]:
    """Return an uninitialised array for each, of its shape; None for None."""
    return [None if x is None else ops.empty(x.shape) for x in arrays]


def zeros_if_none(x: View | None, shape: Sequence[int]) -> View:
    """Return x, or zeros of that shape if it is None."""
    return np.zeros(shape, np.float32) if x is None else x
