"""The mean training loss between two evaluations."""

from __future__ import annotations

import math


class MeanLoss:
    """Mean over the steps since it was last asked for; losses that are not finite count as none."""

    def __init__(self) -> None:
        self._sum, self._n = 0.0, 0

    def add(self, loss: float) -> None:
        """Take in the loss of one step, in nats."""
        if math.isfinite(loss):
            self._sum += loss
            self._n += 1

    def pop(self) -> float:
        """Return the mean and begin anew; NaN where there was no step."""
        mean = self._sum / self._n if self._n else math.nan
        self._sum, self._n = 0.0, 0
        return mean
