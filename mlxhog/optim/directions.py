"""Directions: rules with private state compute one from a gradient, and plain SGD writes it.

A direction u is computed in private memory, in one pass over the gradient and the state. It is
written as SGD writes a gradient, `w -= lr * (u + weight_decay * w)`, by the same kernels, locks and
write modes, native or Metal.
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
        state: private segments, in the order of the arguments.
        native: `native(g, *state, u, **rates)` updates the state and fills u; None if there is
            only the reference.
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
        """Update one parameter's state, of touched rows only, and return its direction."""
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
    """Write directions one by one; Metal kernels write all at once, in few launches.

    Args:
        target: of the writes.
        directions: of some parameters, from scaled gradients.
        by: the rule that writes them.
        step: the step that they belong to.
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
    """A gradient as an array of the parameter's shape; rows that it lacks are zero."""
    if not isinstance(grad, Rows):
        return grad
    whole = np.zeros(slot.shape, np.float32)
    whole[grad.index] = grad.values
    return whole
