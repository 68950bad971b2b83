"""The form of a native operator: two functions over NumPy arrays, one forward and one backward.

An adapter per framework turns a pair into a differentiable function of its arrays. Every array is
float32 and row-major. Only NumPy arrays reach `_native`: on a Mac an array of MLX says that it lies
in Metal's memory, which native code refuses, although the CPU can read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


def causal(pair: Pair, count: int, witness: Callable[[Views], Views], gates: int = 0) -> Pair:
    """Return a pair whose result at a position does not depend on later ones that are not finite.

    Kernels multiply what is later by 0, and 0 times NaN or infinity is NaN. If the results are not
    finite, the kernel runs again with zeros from the first such position of a row on; from there on
    the first result stays. Bits do not change.

    Args:
        pair: its first `count` inputs are (B, S, ...), as is its first result, or longer at the
            beginning, as keys of a cache are.
        count: of these inputs.
        witness: the results -> some numbers of them that are not all finite if an input is not.
        gates: number of the last of these inputs, which may be -inf.
    """

    def forward(*inputs: Any, keep: bool, **how: Any) -> tuple[Views, Views]:
        results, saved = pair.forward(*inputs, keep=keep, **how)
        result = results[0]
        S = result.shape[1]
        if S == 1 or all(np.isfinite(x).all() for x in witness(results)):
            return results, saved
        values = count - gates
        bad = [~np.isfinite(x) for x in inputs[:values]] + [
            ~(x < np.inf) for x in inputs[values:count]
        ]
        firsts = np.min([_first(x) - (x.shape[1] - S) for x in bad], 0)
        own = [x.copy() for x in inputs[:count]]
        for row, first in enumerate(firsts):
            for x in own:
                x[row, max(first + x.shape[1] - S, 0) :] = 0.0
        (clean, *_), _ = pair.forward(*own, *inputs[count:], keep=False, **how)
        for row, first in enumerate(firsts):
            result[row, : max(first, 0)] = clean[row, : max(first, 0)]
        return results, saved

    return replace(pair, forward=forward)


def _first(bad: View) -> View:
    """Return the first position of each row of (B, S, ...) with a true entry, or S."""
    of_position = bad.reshape(*bad.shape[:2], -1).max(-1)
    first: View = np.where(of_position.max(1), of_position.argmax(1), bad.shape[1])
    return first
