"""Arrays of a data set: of the right type and shape, contiguous, finite, within bounds.

Every check costs one pass over the array and names the first entry that fails.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog.errors import DataError


def integers(name: str, given: ArrayLike, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """`given` as a contiguous vector of `dtype`; what does not fit is an error, never wrapped."""
    array = np.asarray(given)
    if array.ndim != 1:
        raise DataError(f"{name} have shape {array.shape}; wanted one dimension")
    if array.size and array.dtype.kind not in "iub":
        raise DataError(f"{name} are {array.dtype}; they must be integers")
    limits = np.iinfo(dtype)
    if array.dtype != dtype and array.size:
        refuse_first(
            (array < limits.min) | (array > limits.max),
            lambda at: f"{name}[{at}] is {array[at]}, which {np.dtype(dtype)} cannot hold",
        )
    return np.ascontiguousarray(array, dtype=dtype)


def numbers(name: str, given: ArrayLike, dimensions: int = 1) -> NDArray[np.float32]:
    """`given` as contiguous float32; what float32 cannot hold becomes infinite."""
    array = np.asarray(given)
    if array.ndim != dimensions:
        raise DataError(f"{name} have shape {array.shape}; wanted {dimensions} dimension(s)")
    if array.dtype.kind not in "iubf":
        raise DataError(f"{name} are {array.dtype}; they must be numbers")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def refuse_non_finite(array: NDArray[np.float32], place: Callable[..., str]) -> None:
    """Refuse NaN and infinities; `place(*index)` says where the first one is."""
    # The sum of finite float32 numbers is finite in float64, and only theirs is: one fast pass.
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    refuse_first(
        ~np.isfinite(array), lambda *at: f"{place(*at)} is {array[at]}; wanted a finite number"
    )


def within(name: str, indices: NDArray[Any], count: int, of: str) -> None:
    """Refuse an index that is not in [0, count)."""
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        refuse_first(
            (indices < 0) | (indices >= count),
            lambda at: f"{name}[{at}] is {indices[at]}; wanted 0..{count - 1}, for {count} {of}",
        )


def same_length(**arrays: NDArray[Any]) -> None:
    """Refuse vectors that should run in parallel and do not."""
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise DataError(f"{lengths}: these must be equally many")


def refuse_first(wrong: NDArray[np.bool_], message: Callable[..., str]) -> None:
    """Raise DataError with `message(*index)` of the first True in `wrong`, if there is one."""
    flat = int(np.argmax(wrong)) if wrong.size else 0
    if wrong.size and wrong.flat[flat]:
        raise DataError(message(*(int(at) for at in np.unravel_index(flat, wrong.shape))))
