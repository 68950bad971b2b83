"""Clipping by the global norm of a gradient, which also finds the gradient that is not finite."""

from __future__ import annotations

import math

from mlxhog import _native
from mlxhog.optim.updates import Grads, Rows


def global_norm(grads: Grads) -> float:
    """Euclidean norm of the whole gradient, summed in float64 in the order of `grads`.

    Finite exactly when every element is, so a caller needs no second pass to find NaN or infinity.
    Duplicate rows are summed up first, as they will be when they are applied.
    """
    total = 0.0
    for grad in grads.values():
        total += _native.sumsq(grad.coalesced().values if isinstance(grad, Rows) else grad)
    return math.sqrt(total)


def clip_factor(norm: float, max_norm: float) -> float:
    """Factor that brings a gradient of `norm` down to `max_norm`; 1 below it, or if it is 0.

    Source: torch.nn.utils.clip_grad_norm_, `min(1, max_norm / (norm + 1e-6))`.
    """
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
