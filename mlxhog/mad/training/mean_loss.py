"""The mean training loss between two evaluations."""

from __future__ import annotations

import math


class MeanLoss:
    """Mean over the steps between two evaluations; losses that are not finite count as none."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []

    def add(self, loss: float, at_ns: int = 0) -> None:
        """Take in the loss of one step, in nats, and when it was applied."""
        if math.isfinite(loss):
            self._steps.append((at_ns, loss))

    def pop(self, until_ns: int | None = None) -> float:
        """Return the mean and begin anew; NaN where there was no step.

        Args:
            until_ns: later steps count for the next mean; None takes all.
        """
        taken = [loss for at, loss in self._steps if until_ns is None or at <= until_ns]
        self._steps = [step for step in self._steps if until_ns is not None and step[0] > until_ns]
        return math.fsum(taken) / len(taken) if taken else math.nan
