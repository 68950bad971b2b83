"""Directions: what rules with private state make of a gradient, and how they are written.

A direction u is computed in memory of the worker alone, in one pass over the gradient and its
state. It is written as plain SGD writes a gradient, `w -= lr * (u + weight_decay * w)`, by the same
kernels, locks and write modes, native or Metal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import Pairs, Step, Target, touched
from mlxhog.optim.sgd import SGD
from mlxhog.optim.updates import Float32, Slot


@dataclass(frozen=True)
class Direction:
    """The formula of a direction, element by element, in NumPy and maybe in native code.

    Attributes:
        state: private segments it keeps, in the order of its arguments.
        native: `native(g, *state, u, **rates)` moves the state on and fills u; None if there is
            the reference alone.
        reference: `reference(g, *state, **rates)` returns u and the new state, with the same bits.
    """

    state: tuple[str, ...]
    native: Callable[..., None] | None
    reference: Callable[..., tuple[Float32, ...]]

    def of(
        self,
        target: Target,
        slot: Slot,
        grad: Float32 | Rows,
        rates: Mapping[str, float],
        *,
        native: bool = True,
    ) -> Float32 | Rows:
        """Move one parameter's state on, of touched rows only, and return its direction."""
        at, g = touched(grad)
        states = [target.state(name, slot) for name in self.state]
        parts = [part[at] for part in states]  # views of a whole parameter, copies of rows
        if native and self.native is not None:
            u = np.empty_like(g)
            self.native(g, *parts, u, **rates)
        else:
            u, *parts = self.reference(g, *parts, **rates)
        if not native or self.native is None or isinstance(grad, Rows):
            for part, value in zip(states, parts, strict=True):
                part[at] = value
        return Rows(grad.index, u) if isinstance(grad, Rows) else u


def write(
    target: Target,
    directions: Iterable[tuple[Slot, Float32 | Rows]],
    by: SGD,
    step: Step,
    *,
    lr: float,
) -> None:
    """Write directions as they come; all at once where Metal kernels do, in few launches.

    Args:
        target: what they are written to.
        directions: of some parameters; gradients have been scaled before.
        by: writes them.
        step: in which they are written.
        lr: step size of this write.
    """
    step = replace(step, lr=lr, grad_scale=1.0)
    if target.metal is not None:
        by.update(target, list(directions), step)
        return
    for pair in directions:
        by.update(target, [pair], step)


def split(
    pairs: Pairs, hidden: frozenset[str]
) -> tuple[list[tuple[Slot, Float32]], list[tuple[Slot, Float32 | Rows]]]:
    """Split off the hidden matrices, each with a gradient of its shape; the rest stays as it is."""
    whole = [(slot, dense(slot, grad)) for slot, grad in pairs if slot.name in hidden]
    return whole, [(slot, grad) for slot, grad in pairs if slot.name not in hidden]


def dense(slot: Slot, grad: Float32 | Rows) -> Float32:
    """A gradient as an array of the parameter's shape; rows that are not named are zero."""
    if not isinstance(grad, Rows):
        return grad
    whole = np.zeros(slot.shape, np.float32)
    whole[grad.index] = grad.values
    return whole
