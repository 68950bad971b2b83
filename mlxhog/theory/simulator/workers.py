"""Simulated workers: what a step costs them, what they do, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError

# -- how long a gradient takes ---------------------------------------------------------------------


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
        _check_time("constant time", self.seconds)

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
        _check_time("least time", self.least_s)
        _check_time("mean delay", self.mean_delay_s)

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
            _check_time("measured time", float(value))

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


def _check_time(name: str, seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{name} of {seconds} s: wanted a time of 0 s or more")


# -- a worker, its phases, and what workers share --------------------------------------------------

Condition = Callable[[], bool]
"""Something that other workers bring about."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker: what a step costs it when it has the machine to itself.

    Attributes:
        name: of its kind, such as "torch:cpu".
        compute: time of a gradient.
        read_s: seconds to take a copy of the parameters.
        apply_s: seconds to add a step to them.
        read_bytes: memory traffic of the copy.
        compute_bytes: memory traffic of a gradient.
        apply_bytes: memory traffic of adding a step.
        on_core: whether it computes on a core of the CPU (a GPU worker does not).

    Raises:
        DataError: a time or a traffic is negative, or a step takes no time at all.
    """

    name: str
    compute: ComputeTime
    read_s: float = 0.0
    apply_s: float = 0.0
    read_bytes: float = 0.0
    compute_bytes: float = 0.0
    apply_bytes: float = 0.0
    on_core: bool = True

    def __post_init__(self) -> None:
        """Check the costs."""
        for name in ("read_s", "apply_s", "read_bytes", "compute_bytes", "apply_bytes"):
            if not getattr(self, name) >= 0:
                raise DataError(
                    f"worker {self.name!r} has {name} = {getattr(self, name)}; wanted 0 or more"
                )
        if not self.step_s > 0:
            raise DataError(f"a step of worker {self.name!r} takes no time; give it some")

    @property
    def step_s(self) -> float:
        """Expected time of a step, alone."""
        return self.read_s + self.compute.mean_s + self.apply_s

    def to_json(self) -> dict[str, Any]:
        """Return the costs as JSON types."""
        costs = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return costs | {"compute": self.compute.to_json()}


@dataclass(frozen=True)
class Work:
    """A phase of work.

    Attributes:
        seconds: it takes at full speed.
        moved_bytes: memory traffic in that time.
        on_core: whether it needs a core of the CPU.
        unless: abandoned as soon as this holds.
    """

    seconds: float
    moved_bytes: float = 0.0
    on_core: bool = True
    unless: Condition | None = None


Behaviour = Iterator[Work | Condition]
"""What a worker does, one after another: work, or wait for a condition."""


@dataclass
class SharedState:
    """What the workers share: the version of the parameters, and what has been done to them."""

    version: int = 0
    gradients: int = 0
    wasted: int = 0
    staleness: list[tuple[int, int]] = field(default_factory=list)

    def apply(self, rank: int, read_version: int, gradients: int = 1) -> None:
        """Count one update by a worker, made of so many gradients computed at a version."""
        self.staleness.append((rank, self.version - read_version))
        self.version += 1
        self.gradients += gradients


@dataclass(frozen=True)
class WorkerContext:
    """One worker's side of a simulation: its costs, the shared state, its next compute time."""

    rank: int
    worker: Worker
    board: SharedState
    next_compute_s: Callable[[], float]

    def read(self) -> Work:
        """Take a copy of the parameters."""
        return self._work(self.worker.read_s, self.worker.read_bytes)

    def compute(self, unless: Condition | None = None) -> Work:
        """Compute a gradient. A slow one moves the same bytes as a fast one."""
        return self._work(self.next_compute_s(), self.worker.compute_bytes, unless)

    def add(self, unless: Condition | None = None) -> Work:
        """Add a step to the parameters."""
        return self._work(self.worker.apply_s, self.worker.apply_bytes, unless)

    def _work(self, seconds: float, moved: float, unless: Condition | None = None) -> Work:
        return Work(seconds, moved, self.worker.on_core, unless)
