"""What a simulation says: always a prediction, with the inputs it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.errors import DataError
from mlxhog.theory.staleness import Staleness


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Throughput and staleness of simulated workers; nothing here was measured but the inputs.

    Attributes:
        inputs: workers, scheme, machine, length and seed of the simulation.
        seconds: simulated, after the warm-up.
        updates_per_s: updates of the parameters.
        gradients_per_s: gradients that went into them.
        efficiency: gradients_per_s over those of the same workers, each alone on the machine.
        waiting_share: part of the workers' time spent waiting for others.
        wasted_share: part of the gradients that were thrown away.
        staleness: over all updates.
        workers: the same per worker, in their order.
    """

    inputs: Mapping[str, Any]
    seconds: float
    updates_per_s: float
    gradients_per_s: float
    efficiency: float
    waiting_share: float
    wasted_share: float
    staleness: Staleness
    workers: tuple[Staleness, ...]

    def to_json(self) -> dict[str, Any]:
        """Return `prediction` and its `inputs` as JSON types."""
        values = asdict(self)
        return {"inputs": values.pop("inputs"), "prediction": values}


@dataclass(frozen=True, kw_only=True)
class TimeToLoss:
    """Seconds to a loss: predicted throughput, and updates as measured at several staleness values.

    Attributes:
        inputs: of the prediction, and the measured updates.
        seconds: to the loss.
        updates: to the loss.
        staleness: at which they were looked up: the predicted mean.
        extrapolated: the staleness lies outside what was measured.
    """

    inputs: Mapping[str, Any]
    seconds: float
    updates: float
    staleness: float
    extrapolated: bool

    def to_json(self) -> dict[str, Any]:
        """Return `prediction` and its `inputs` as JSON types."""
        values = asdict(self)
        return {"inputs": values.pop("inputs"), "prediction": values}


def time_to_loss(prediction: Prediction, updates_at: Mapping[float, float]) -> TimeToLoss:
    """Predict the time to a loss.

    Between measured staleness values the number of updates is interpolated; beyond the largest it
    goes on as a straight line through the last two (and is `extrapolated`).

    Args:
        prediction: throughput and staleness.
        updates_at: updates to the loss, by the staleness at which they were measured; a single
            entry is used at every staleness.

    Raises:
        DataError: nothing was measured.
    """
    if not updates_at:
        raise DataError("updates to a loss were measured at no staleness; measure at least one")
    at = np.array(sorted(updates_at), np.float64)
    updates = np.array([updates_at[staleness] for staleness in sorted(updates_at)], np.float64)
    staleness = prediction.staleness.mean
    needed = float(np.interp(staleness, at, updates))
    if staleness > at[-1] and len(at) > 1:
        slope = (updates[-1] - updates[-2]) / (at[-1] - at[-2])
        needed = float(updates[-1] + slope * (staleness - at[-1]))
    measured = [
        {"staleness": float(s), "updates": float(u)} for s, u in zip(at, updates, strict=True)
    ]
    return TimeToLoss(
        inputs={**prediction.inputs, "updates_to_loss": measured},
        seconds=needed / prediction.updates_per_s,
        updates=needed,
        staleness=staleness,
        extrapolated=not at[0] <= staleness <= at[-1],
    )
