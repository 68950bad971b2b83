"""An event-driven simulation of lock-free workers: speed and staleness on shared cores and memory.

Each worker reads the parameters, computes and adds its step, again and again; nobody waits. Cores
and memory bandwidth are shared among the workers that are active at the same time. What comes out
is always a prediction, with the inputs it is made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.errors import DataError
from mlxhog.theory.analysis.staleness import Staleness, of_histogram


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Costs of a step of one worker that has the machine to itself.

    Attributes:
        name: of its kind, such as "torch:cpu".
        compute_s: seconds of a gradient.
        read_s: seconds to take a copy of the parameters.
        apply_s: seconds to add a step to them.
        read_bytes: memory traffic of the copy.
        compute_bytes: memory traffic of a gradient.
        apply_bytes: memory traffic of adding a step.

    Raises:
        DataError: a time or a traffic is negative, or a step takes no time at all.
    """

    name: str
    compute_s: float
    read_s: float = 0.0
    apply_s: float = 0.0
    read_bytes: float = 0.0
    compute_bytes: float = 0.0
    apply_bytes: float = 0.0

    def __post_init__(self) -> None:
        """Check the costs."""
        for name, cost in asdict(self).items():
            if name != "name" and not 0 <= cost < float("inf"):
                raise DataError(f"worker {self.name!r} has {name} = {cost}; wanted 0 or more")
        if not self.step_s > 0:
            raise DataError(f"a step of worker {self.name!r} takes no time; give it some")

    @property
    def step_s(self) -> float:
        """Seconds of a step, alone."""
        return self.read_s + self.compute_s + self.apply_s

    @property
    def phases(self) -> tuple[tuple[float, float], ...]:
        """Seconds and bytes of reading, computing and adding."""
        return (
            (self.read_s, self.read_bytes),
            (self.compute_s, self.compute_bytes),
            (self.apply_s, self.apply_bytes),
        )


# -- shares of a machine's cores and memory --------------------------------------------------------


def fair_shares(demands: Sequence[float], capacity: float) -> list[float]:
    """Divide a capacity: no one gets more than it asks for, and who asks for more gets the same.

    Source: max-min fairness, Bertsekas and Gallager, Data Networks, section 6.5.
    """
    shares = [0.0] * len(demands)
    rest, waiting = capacity, len(demands)
    for k in sorted(range(len(demands)), key=demands.__getitem__):
        shares[k] = min(demands[k], rest / waiting)
        rest -= shares[k]
        waiting -= 1
    return shares


def speeds(traffic: Sequence[float], *, cores: int | None, bandwidth: float | None) -> list[float]:
    """Speed of each worker, 1 where it runs as if alone.

    Cores are divided evenly by the operating system; a worker slowed by that asks for less memory
    traffic, and is slowed again where its fair share of the bandwidth is less than it asks for.

    Args:
        traffic: bytes per second that each worker moves at full speed.
        cores: of the machine; None for as many as there are workers.
        bandwidth: of the memory in bytes per second; None for no limit.
    """
    workers = len(traffic)
    speed = 1.0 if cores is None or workers <= cores else cores / workers
    demands = [bytes_per_s * speed for bytes_per_s in traffic]
    if bandwidth is None or sum(demands) <= bandwidth:
        return [speed] * workers
    shares = fair_shares(demands, bandwidth)
    return [
        speed * share / demand if demand else speed
        for share, demand in zip(shares, demands, strict=True)
    ]


# -- the clock -------------------------------------------------------------------------------------

_ADD = 2  # the last phase of a step


class Machine:
    """Workers on shared cores and memory, advanced from one finished phase to the next.

    Attributes:
        now: simulated seconds.
        staleness: (worker, updates by others between its read and its write) of every update.
    """

    def __init__(
        self, workers: Sequence[Worker], *, cores: int | None, bandwidth: float | None
    ) -> None:
        """Start every worker's first phase at time 0; arguments as in `simulate`."""
        self.now = 0.0
        self.staleness: list[tuple[int, int]] = []
        self._cores, self._bandwidth = cores, bandwidth
        self._phases = [worker.phases for worker in workers]
        self._at = [-1] * len(workers)  # the phase that each is in
        self._read_version = [0] * len(workers)
        self._rest_s = [0.0] * len(workers)  # seconds of it at full speed
        for rank in range(len(workers)):
            self._next(rank)

    def run_until(self, version: int) -> None:
        """Advance until so many updates have been applied, and all that end at the same time."""
        while len(self.staleness) < version:
            self._advance()

    def _advance(self) -> None:
        """Go on to the time at which the next phase ends."""
        present = [phases[at] for phases, at in zip(self._phases, self._at, strict=True)]
        speed = speeds(
            [moved / seconds for seconds, moved in present],
            cores=self._cores,
            bandwidth=self._bandwidth,
        )
        ends = [rest_s / s for rest_s, s in zip(self._rest_s, speed, strict=True)]
        step = min(ends)
        self.now += step
        self._rest_s = [
            0.0 if end == step else max(0.0, rest_s - step * s)
            for rest_s, s, end in zip(self._rest_s, speed, ends, strict=True)
        ]
        for rank, rest_s in enumerate(self._rest_s):
            if rest_s == 0.0:
                self._next(rank)

    def _next(self, rank: int) -> None:
        """Begin a worker's next phase; phases that take no time are over at once."""
        while self._rest_s[rank] == 0.0:
            if self._at[rank] == _ADD:
                self.staleness.append((rank, len(self.staleness) - self._read_version[rank]))
            self._at[rank] = (self._at[rank] + 1) % len(self._phases[rank])
            if self._at[rank] == 0:
                self._read_version[rank] = len(self.staleness)
            self._rest_s[rank] = self._phases[rank][self._at[rank]][0]


# -- predictions -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Throughput and staleness of simulated workers; nothing here was measured but the inputs.

    Attributes:
        inputs: workers, machine and length of the simulation.
        seconds: simulated, after the warm-up.
        gradients_per_s: gradients, each of which is an update.
        efficiency: gradients_per_s over those of the same workers, each alone on the machine.
        staleness: over all updates.
        workers: the same per worker, in their order.
    """

    inputs: Mapping[str, Any]
    seconds: float
    gradients_per_s: float
    efficiency: float
    staleness: Staleness
    workers: tuple[Staleness, ...]

    def to_json(self) -> dict[str, Any]:
        """Return `prediction` and its `inputs` as JSON types."""
        values = asdict(self)
        return {"inputs": values.pop("inputs"), "prediction": values}


def simulate(
    workers: Sequence[Worker],
    *,
    updates: int = 5000,
    cores: int | None = None,
    bandwidth: float | None = None,
) -> Prediction:
    """Simulate a machine and return what it would do.

    Args:
        workers: at least one.
        updates: to simulate after a warm-up of a tenth of them.
        cores: of the CPU; None for enough of them.
        bandwidth: of the memory, bytes per second; None for no limit.

    Raises:
        DataError: no workers, nothing to simulate, or a machine without cores or bandwidth.
    """
    if not workers or updates < 1:
        raise DataError(f"{len(workers)} workers, {updates} updates: wanted at least one of each")
    for name, value in (("cores", cores), ("bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise DataError(f"a machine with {name} = {value}: wanted more than 0, or no limit")
    machine = Machine(workers, cores=cores, bandwidth=bandwidth)
    machine.run_until(updates // 10)
    start, start_s = len(machine.staleness), machine.now
    machine.run_until(start + updates)
    seconds, late = machine.now - start_s, machine.staleness[start:]
    return Prediction(
        inputs={
            "workers": [asdict(worker) for worker in workers],
            "cores": cores,
            "bandwidth_bytes_per_s": bandwidth,
            "updates": updates,
            "warm_up": updates // 10,
        },
        seconds=seconds,
        gradients_per_s=len(late) / seconds,
        efficiency=len(late) / seconds / sum(1.0 / worker.step_s for worker in workers),
        staleness=of_histogram("all", Counter(tau for _, tau in late)),
        workers=tuple(
            of_histogram(worker.name, Counter(tau for who, tau in late if who == rank))
            for rank, worker in enumerate(workers)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TimeToLoss:
    """Seconds to a loss: predicted throughput, and updates as measured at several staleness values.

    Attributes:
        seconds: to the loss.
        updates: to the loss.
        extrapolated: the predicted staleness lies outside what was measured.
    """

    seconds: float
    updates: float
    extrapolated: bool


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
    return TimeToLoss(
        seconds=needed / prediction.gradients_per_s,
        updates=needed,
        extrapolated=not at[0] <= staleness <= at[-1],
    )
