"""How long a gradient takes: distributions of compute time for the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError


class ComputeTime(Protocol):
    """Independent times of successive gradients, in seconds."""

    @property
    def mean_s(self) -> float:
        """Expected time."""

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        """Return `size` times, (size,)."""

    def scaled(self, factor: float) -> ComputeTime:
        """Every time multiplied by a factor: 2 for a worker half as fast."""

    def to_json(self) -> dict[str, Any]:
        """Return the distribution as JSON types, for the inputs of a prediction."""


@dataclass(frozen=True)
class Constant:
    """Always the same time."""

    seconds: float

    def __post_init__(self) -> None:
        """Check the time."""
        _time("constant time", self.seconds)

    @property
    def mean_s(self) -> float:
        """The time."""
        return self.seconds

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        """Return the time, (size,) times."""
        return np.full(size, self.seconds)

    def scaled(self, factor: float) -> Constant:
        """Return another constant time."""
        return Constant(self.seconds * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind and time."""
        return {"kind": "constant", "seconds": self.seconds}


@dataclass(frozen=True)
class ShiftedExponential:
    """A least time, and an exponential delay with a given mean on top: the usual straggler model.

    Source: Lee et al. 2018, arXiv:1512.02673.
    """

    least_s: float
    mean_delay_s: float

    def __post_init__(self) -> None:
        """Check the times."""
        _time("least time", self.least_s)
        _time("mean delay", self.mean_delay_s)

    @property
    def mean_s(self) -> float:
        """Least time plus mean delay."""
        return self.least_s + self.mean_delay_s

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        """Return independent times, (size,)."""
        return self.least_s + self.mean_delay_s * rng.standard_exponential(size)

    def scaled(self, factor: float) -> ShiftedExponential:
        """Scale the least time as well as the delay."""
        return ShiftedExponential(self.least_s * factor, self.mean_delay_s * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind and parameters."""
        return {
            "kind": "shifted exponential",
            "least_s": self.least_s,
            "mean_delay_s": self.mean_delay_s,
        }


class Measured:
    """Times drawn, each as likely as the others, from those that were measured.

    They are drawn independently: slow spells of a machine are not reproduced.
    """

    def __init__(self, seconds: Sequence[float] | NDArray[np.float64]) -> None:
        """Keep the measured times.

        Raises:
            DataError: there are none, or one is negative or not finite.
        """
        self.seconds = np.asarray(seconds, np.float64)
        if not self.seconds.size:
            raise DataError("no compute time was measured; run at least one step")
        for value in (self.seconds.min(), self.seconds.max(), self.seconds.mean()):
            _time("measured time", float(value))

    @property
    def mean_s(self) -> float:
        """Mean of the measured times."""
        return float(self.seconds.mean())

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        """Return independent times, (size,)."""
        return rng.choice(self.seconds, size)

    def scaled(self, factor: float) -> Measured:
        """Scale every measured time."""
        return Measured(self.seconds * factor)

    def to_json(self) -> dict[str, Any]:
        """Return kind, count and quartiles."""
        low, median, high = (float(q) for q in np.quantile(self.seconds, (0.25, 0.5, 0.75)))
        return {
            "kind": "measured",
            "count": len(self.seconds),
            "mean_s": self.mean_s,
            "quartiles_s": [low, median, high],
        }


def _time(name: str, seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{name} of {seconds} s: wanted a time of 0 s or more")
