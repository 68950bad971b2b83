"""Directions that a rule computes itself, and their write as plain SGD writes a gradient.

`w -= lr * (u + weight_decay * w)`, by the kernels, locks and write modes of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mlxhog.optim.gradients import Rows, dense
from mlxhog.optim.rule import GRADIENT, Form, Pairs, Step, Target, Write
from mlxhog.optim.updates import Float32

if TYPE_CHECKING:
    from mlxhog.arena.layout import Slot


def directions(
    target: Target,
    pairs: Pairs,
    state: Sequence[str],
    formula: Callable[..., tuple[Float32, ...]],
) -> Iterator[tuple[Slot, Float32 | Rows]]:
    """Update the state of parameters, of touched rows only, and yield their directions.

    Args:
        target: of the step.
        pairs: parameters with their gradients.
        state: names of private segments.
        formula: from a gradient and the parts of the state to a direction and the new parts.
    """
    for slot, grad in pairs:
        at, g = (grad.index, grad.values) if isinstance(grad, Rows) else (slice(None), grad)
        parts = [target.state(name, slot) for name in state]
        u, *moved = formula(g, *(part[at] for part in parts))
        for part, value in zip(parts, moved, strict=True):
            part[at] = value
        yield slot, Rows(grad.index, u) if isinstance(grad, Rows) else u


def write(
    target: Target,
    directions: Iterable[tuple[Slot, Float32 | Rows]],
    step: Step,
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Write directions one by one; Metal kernels write all at once, in few launches.

    Args:
        target: of the writes.
        directions: of some parameters.
        step: the step that they belong to.
        lr: step size of this write.
        weight_decay: of the parameters that decay.
        scale: multiplies the directions.
    """

    def form(decays: bool) -> Form:
        return Form(Write(lr, scale, weight_decay * decays))

    for batch in ((pair,) for pair in directions) if target.metal is None else [list(directions)]:
        with target.writing():
            target.step(GRADIENT, batch, form, step)


def split(
    pairs: Pairs, hidden: frozenset[str]
) -> tuple[list[tuple[Slot, Float32]], list[tuple[Slot, Float32 | Rows]]]:
    """Split off the hidden matrices, each with a gradient of its shape; the rest stays as it is."""
    whole = [(slot, dense(grad, slot.shape)) for slot, grad in pairs if slot.name in hidden]
    return whole, [(slot, grad) for slot, grad in pairs if slot.name not in hidden]
