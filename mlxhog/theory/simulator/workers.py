"""Simulated workers: what a step costs them, what they do, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxhog.errors import DataError
from mlxhog.theory.simulator.times import ComputeTime

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
        unless: given up as soon as this holds.
    """

    seconds: float
    moved_bytes: float = 0.0
    on_core: bool = True
    unless: Condition | None = None


Behaviour = Iterator[Work | Condition]
"""What a worker does, one after another: work, or wait for a condition."""


@dataclass
class Board:
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
class Desk:
    """One worker's side of a simulation: its costs, the shared board, its next compute time."""

    rank: int
    worker: Worker
    board: Board
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
