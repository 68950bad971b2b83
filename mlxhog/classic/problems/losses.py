"""The losses of linear models in float64, for measuring.

Training has its own in metal/native/classic.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Loss = Literal["hinge", "logistic", "squares"]


def values(loss: Loss, scores: Float64, labels: Float64) -> Float64:
    """The loss of each score, the product of a row with x; squares are halved.

    Args:
        loss: of hinge max(1 - y s, 0), logistic ln(1 + exp(-y s)), squares (s - y)^2 / 2.
        scores: any shape.
        labels: of the same shape; -1 or +1 but for squares.
    """
    if loss == "hinge":
        return np.maximum(1.0 - labels * scores, 0.0)
    if loss == "logistic":
        return np.logaddexp(0.0, -labels * scores)
    return 0.5 * np.square(scores - labels)


def wrong_signs(scores: Float64, labels: Float64) -> float:
    """The share of scores on the wrong side of 0; 0 itself counts as +1."""
    return float(np.mean((scores >= 0) != (labels > 0)))
