"""An event-driven simulation of workers that train together: speed, staleness, and toy problems.

Each worker reads, computes and adds; a scheme gives the order and the waits. The result is always a
prediction, and it holds its inputs.

    times       times of gradients
    workers     costs of a worker's step, and the state that workers share
    schemes     when they read, how they write and when they meet
    objectives  small problems that simulated updates solve
    machine     the clock: shared cores, deaths and joins
    links       links between machines, and rounds of a cluster
    what_if     `mlxhog simulate`: its options, and every strategy on one set of workers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.errors import DataError
from mlxhog.theory.simulator.machine import Deadlock, Event, Simulation
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Worker

__all__ = [
    "Deadlock", "Event", "Prediction", "Simulation", "Staleness", "of_histogram", "simulate",
]  # fmt: skip

# -- the prediction --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """The distribution of one worker's staleness, or of a whole run's, in updates.

    Attributes:
        name: of the worker.
        steps: number of updates.
        mean: average.
        p50: median.
        p99: 99th percentile.
        max: largest.
    """

    name: str
    steps: int
    mean: float
    p50: int
    p99: int
    max: int


def of_histogram(name: str, histogram: Mapping[int, int]) -> Staleness:
    """Summarise a histogram: staleness -> number of updates."""
    steps = sum(histogram.values())
    if steps == 0:
        return Staleness(name=name, steps=0, mean=0.0, p50=0, p99=0, max=0)
    values = sorted(histogram)
    ends = np.cumsum([histogram[value] for value in values])
    return Staleness(
        name=name,
        steps=steps,
        mean=sum(value * count for value, count in histogram.items()) / steps,
        p50=values[int(np.searchsorted(ends * 100, steps * 50))],
        p99=values[int(np.searchsorted(ends * 100, steps * 99))],
        max=values[-1],
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Throughput and staleness of simulated workers; only the inputs are measured, if anything is.

    Attributes:
        inputs: workers, scheme, machine, length and seed of the simulation.
        seconds: simulated, after the warm-up.
        updates_per_s: updates of the parameters.
        gradients_per_s: gradients that went into them.
        efficiency: gradients_per_s over those of the same workers, each alone on the machine.
        waiting_share: part of the workers' time spent waiting for others.
        waiting: the same of each worker, in their order; None for one that never joined.
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
    waiting: tuple[float | None, ...]
    wasted_share: float
    staleness: Staleness
    workers: tuple[Staleness, ...]

    def to_json(self) -> dict[str, Any]:
        """Return `prediction` and its `inputs` as JSON types."""
        values = asdict(self)
        return {"inputs": values.pop("inputs"), "prediction": values}


# -- the simulation --------------------------------------------------------------------------------


def simulate(
    workers: Sequence[Worker],
    scheme: Scheme,
    *,
    updates: int = 5000,
    warm_up: int | None = None,
    cores: int | None = None,
    seed: int = 0,
    events: Sequence[Event] = (),
) -> Prediction:
    """Simulate workers on a machine, and return the prediction.

    Args:
        workers: at least one.
        scheme: one of `mlxhog.theory.simulator.schemes`.
        updates: to simulate after the warm-up; fewer if all workers finish before.
        warm_up: updates left out at the start; None is a tenth of `updates`.
        cores: of the CPU, shared by its workers; None for enough of them.
        seed: of the compute times. The same seed gives the same prediction.
        events: deaths and joins.

    Raises:
        DataError: no workers, nothing to simulate, events that are impossible or come too late, or
            a machine without cores.
        ConfigError: the scheme does not fit the workers.
        Deadlock: every worker waits for another.
    """
    if not workers or updates < 1:
        raise DataError(f"{len(workers)} workers, {updates} updates: wanted at least one of each")
    if cores is not None and not cores > 0:
        raise DataError(f"a machine with cores = {cores}: wanted more than 0, or no limit")
    skipped = updates // 10 if warm_up is None else warm_up
    sim = Simulation(workers, scheme, cores=cores, seed=seed, events=events)
    sim.run_until(skipped)
    start = sim.snapshot()
    sim.run_until(start.version + updates)
    end = sim.snapshot()
    last = max((event.at_s for event in events), default=0.0)
    if last > end.now:
        raise DataError(
            f"a worker is to die or join at {last:g} s, and {updates} updates take {end.now:.3g} s "
            "in all; simulate more updates, or choose an earlier time"
        )
    seconds = end.now - start.now
    if seconds <= 0:
        raise DataError("all workers finish within the warm-up; give them more steps")
    gradients, wasted = end.gradients - start.gradients, end.wasted - start.wasted
    late = sim.state.lateness[start.version : end.version]
    waited = np.subtract(end.waited_s, start.waited_s)
    there = np.subtract(end.there_s, start.there_s)
    return Prediction(
        inputs={
            "workers": [worker.to_json() for worker in workers],
            "scheme": scheme.to_json(),
            "cores": cores,
            "updates": updates,
            "warm_up": skipped,
            "seed": seed,
            "events": [asdict(event) for event in events],
        },
        seconds=seconds,
        updates_per_s=(end.version - start.version) / seconds,
        gradients_per_s=gradients / seconds,
        efficiency=gradients / seconds / sum(1.0 / worker.step_s for worker in workers),
        waiting_share=float(waited.sum() / there.sum()),
        waiting=tuple(float(w / t) if t > 0 else None for w, t in zip(waited, there, strict=True)),
        wasted_share=wasted / (gradients + wasted),
        staleness=of_histogram("all", Counter(tau for _, tau in late)),
        workers=tuple(
            of_histogram(worker.name, Counter(tau for by, tau in late if by == rank))
            for rank, worker in enumerate(workers)
        ),
    )
