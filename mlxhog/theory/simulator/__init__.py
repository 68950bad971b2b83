"""An event-driven simulation of workers that train together: speed and staleness, no learning.

Each worker reads, computes and adds; a scheme says in which order and what waits for what; cores
and memory bandwidth are shared among the workers that are active at the same time. What comes out
is always a prediction, with the inputs it is made of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.errors import DataError
from mlxhog.theory.analysis.staleness import Staleness, of_histogram
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import (
    Behaviour,
    Condition,
    SharedState,
    Work,
    Worker,
    WorkerContext,
)

# -- the prediction --------------------------------------------------------------------------------


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


def speeds(
    on_core: Sequence[bool],
    traffic: Sequence[float],
    *,
    cores: int | None,
    bandwidth: float | None,
) -> list[float]:
    """Speed of each active worker, 1 where it runs as if alone.

    Cores are divided evenly by the operating system; a worker slowed by that asks for less memory
    traffic, and is slowed again where its fair share of the bandwidth is less than it asks for.

    Args:
        on_core: whether a worker's present phase needs a core of the CPU.
        traffic: bytes per second it moves at full speed.
        cores: of the machine; None for as many as there are workers.
        bandwidth: of the memory in bytes per second; None for no limit.
    """
    busy = sum(on_core)
    slow = 1.0 if cores is None or busy <= cores else cores / busy
    speed = [slow if needs else 1.0 for needs in on_core]
    if bandwidth is None:
        return speed
    demands = [bytes_per_s * s for bytes_per_s, s in zip(traffic, speed, strict=True)]
    if sum(demands) <= bandwidth:
        return speed
    shares = fair_shares(demands, bandwidth)
    return [
        s * share / demand if demand else s
        for s, share, demand in zip(speed, shares, demands, strict=True)
    ]


# -- the clock -------------------------------------------------------------------------------------

_DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class Snapshot:
    """The state of a simulation: simulated seconds, and counts since its start."""

    now: float
    version: int
    gradients: int
    wasted: int
    waited_s: float


class Machine:
    """Workers on shared cores and memory, advanced from one finished phase to the next."""

    def __init__(
        self,
        workers: Sequence[Worker],
        scheme: Scheme,
        *,
        cores: int | None,
        bandwidth: float | None,
        seed: int,
    ) -> None:
        """Start every worker's first phase at time 0; arguments as in `simulator.simulate`."""
        self.board, self.now, self.waited_s = SharedState(), 0.0, 0.0
        self._cores, self._bandwidth = cores, bandwidth
        streams = np.random.SeedSequence(seed).spawn(len(workers))
        self._behaviours: list[Behaviour] = scheme.start(
            [
                WorkerContext(
                    rank, worker, self.board, _compute_times(worker, np.random.default_rng(stream))
                )
                for rank, (worker, stream) in enumerate(zip(workers, streams, strict=True))
            ]
        )
        self._doing: list[Work | Condition] = [next(each) for each in self._behaviours]
        self._rest_s = [math.inf] * len(workers)  # seconds of work at full speed
        for rank in range(len(workers)):
            self._begin(rank)
        self._settle()

    def snapshot(self) -> Snapshot:
        """Return where the simulation is."""
        board = self.board
        return Snapshot(self.now, board.version, board.gradients, board.wasted, self.waited_s)

    def run_until(self, version: int) -> None:
        """Advance until so many updates have been made; all that end together are included."""
        while self.board.version < version:
            self._advance()

    def _advance(self) -> None:
        """Go on to the time at which the next phase ends."""
        active = [rank for rank, rest_s in enumerate(self._rest_s) if rest_s < math.inf]
        assert active, "every worker waits for another: a scheme deadlocks"
        works = [work for rank in active if isinstance(work := self._doing[rank], Work)]
        speed = speeds(
            [work.on_core for work in works],
            [work.moved_bytes / work.seconds for work in works],
            cores=self._cores,
            bandwidth=self._bandwidth,
        )
        ends = [self._rest_s[rank] / s for rank, s in zip(active, speed, strict=True)]
        step = min(ends)
        self.now += step
        self.waited_s += step * (len(self._rest_s) - len(active))
        for rank, s, end in zip(active, speed, ends, strict=True):
            self._rest_s[rank] = 0.0 if end == step else max(0.0, self._rest_s[rank] - step * s)
        for rank in active:
            if self._rest_s[rank] == 0.0:
                self._next(rank)
        self._settle()

    def _settle(self) -> None:
        """Let go who waits for something that has happened, until nothing more happens."""
        moved = True
        while moved:
            moved = False
            for rank, doing in enumerate(self._doing):
                condition = doing.unless if isinstance(doing, Work) else doing
                if condition is not None and condition():
                    self._next(rank)
                    moved = True

    def _next(self, rank: int) -> None:
        self._doing[rank] = next(self._behaviours[rank])
        self._begin(rank)

    def _begin(self, rank: int) -> None:
        """Take up what a worker does; phases that take no time are over at once."""
        while isinstance(doing := self._doing[rank], Work) and doing.seconds == 0:
            self._doing[rank] = next(self._behaviours[rank])
        self._rest_s[rank] = doing.seconds if isinstance(doing, Work) else math.inf


def _compute_times(worker: Worker, rng: np.random.Generator) -> Callable[[], float]:
    """A worker's successive compute times, drawn many at once."""
    times: list[float] = []

    def next_s() -> float:
        if not times:
            times.extend(worker.compute.draw(rng, _DRAWN_AT_ONCE).tolist())
        return times.pop()

    return next_s


# -- the simulation --------------------------------------------------------------------------------


def simulate(
    workers: Sequence[Worker],
    scheme: Scheme,
    *,
    updates: int = 5000,
    warm_up: int | None = None,
    cores: int | None = None,
    bandwidth: float | None = None,
    seed: int = 0,
) -> Prediction:
    """Simulate a machine and return what it would do.

    Args:
        workers: at least one.
        scheme: one of `mlxhog.theory.simulator.schemes`.
        updates: to simulate after the warm-up.
        warm_up: updates left out at the start; a tenth of `updates` where not given.
        cores: of the CPU, shared by its workers; None for enough of them.
        bandwidth: of the memory, bytes per second; None for no limit.
        seed: of the compute times. The same seed gives the same prediction.

    Raises:
        DataError: no workers, nothing to simulate, or a machine without cores or bandwidth.
        ConfigError: the scheme does not fit the workers.
    """
    if not workers or updates < 1:
        raise DataError(f"{len(workers)} workers, {updates} updates: wanted at least one of each")
    for name, value in (("cores", cores), ("bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise DataError(f"a machine with {name} = {value}: wanted more than 0, or no limit")
    skipped = updates // 10 if warm_up is None else warm_up
    machine = Machine(workers, scheme, cores=cores, bandwidth=bandwidth, seed=seed)
    machine.run_until(skipped)
    start = machine.snapshot()
    machine.run_until(start.version + updates)
    end = machine.snapshot()
    seconds = end.now - start.now
    gradients, wasted = end.gradients - start.gradients, end.wasted - start.wasted
    late = machine.board.staleness[start.version : end.version]
    return Prediction(
        inputs={
            "workers": [worker.to_json() for worker in workers],
            "scheme": scheme.to_json(),
            "cores": cores,
            "bandwidth_bytes_per_s": bandwidth,
            "updates": updates,
            "warm_up": skipped,
            "seed": seed,
        },
        seconds=seconds,
        updates_per_s=(end.version - start.version) / seconds,
        gradients_per_s=gradients / seconds,
        efficiency=gradients / seconds / sum(1.0 / worker.step_s for worker in workers),
        waiting_share=(end.waited_s - start.waited_s) / (seconds * len(workers)),
        wasted_share=wasted / (gradients + wasted),
        staleness=of_histogram("all", Counter(tau for _, tau in late)),
        workers=tuple(
            of_histogram(worker.name, Counter(tau for who, tau in late if who == rank))
            for rank, worker in enumerate(workers)
        ),
    )
