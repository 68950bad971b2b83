"""Has a run diverged? Said of its objective, after every epoch."""

from __future__ import annotations

import math

EXPLODED = 10.0
"""Times the initial objective from which on it counts as diverged: the start is the worst that a
step size which converges ever sees, but for noise of an order that 10 leaves room for."""


def diverged(objective: float, initial: float) -> bool:
    """Whether the objective is not finite, or has left its initial value far behind."""
    return not math.isfinite(objective) or objective > EXPLODED * max(initial, 1e-30)


def advice(objective: float, epoch: int, lr: float, usual: float) -> str:
    """What happened, and a step size to try.

    Args:
        objective: after `epoch`.
        epoch: counted from 1.
        lr: step size of the first epoch.
        usual: the problem's own.
    """
    what = f"rose to {objective:.3g}" if math.isfinite(objective) else f"is {objective}"
    smaller = usual if usual < lr else lr / 10
    return f"diverged: the objective {what} in epoch {epoch} with --lr {lr:g}; try --lr {smaller:g}"
