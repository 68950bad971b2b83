"""An event-driven simulation of workers that train together: speed, staleness, and toy problems.

Each worker reads, computes and adds; a strategy (`strategies`, `links`) gives the order and the
waits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlxhog.errors import DataError
from mlxhog.research.simulator.machine import Event, SimulatedStrategy, Simulation, Worker


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """The distribution of one worker's staleness, or of a whole run's, in updates."""

    name: str  # of the worker
    steps: int  # number of updates
    mean: float
    p50: int
    p99: int
    max: int

    @classmethod
    def of(cls, name: str, histogram: Mapping[int, int]) -> "Staleness":
        """Summarise a histogram: staleness -> number of updates."""
        values, steps = sorted(histogram), sum(histogram.values())
        if not steps:
            return cls(name=name, steps=0, mean=0.0, p50=0, p99=0, max=0)
        ends = np.cumsum([histogram[value] for value in values])
        p50, p99 = (values[int(np.searchsorted(ends * 100, steps * k))] for k in (50, 99))
        mean = sum(value * count for value, count in histogram.items()) / steps
        return cls(name=name, steps=steps, mean=mean, p50=p50, p99=p99, max=values[-1])


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Throughput and staleness of simulated workers."""

    seconds: float  # simulated, after the warmup
    updates_per_s: float  # updates of the parameters
    gradients_per_s: float  # gradients that went into them
    efficiency: float  # gradients_per_s over those of workers that never wait
    waiting_share: float  # part of the workers' time spent waiting for others
    waiting: tuple[float | None, ...]  # the same of each worker; None for one that never joined
    wasted_share: float  # part of the gradients that were thrown away
    staleness: Staleness  # over all updates
    workers: tuple[Staleness, ...]  # the same per worker, in their order


def simulate(
    workers: Sequence[Worker],
    strategy: SimulatedStrategy,
    *,
    updates: int = 5000,
    warmup: int | None = None,
    seed: int = 0,
    events: Sequence[Event] = (),
) -> Prediction:
    """Simulate workers, at least one, and return the prediction; the same for the same seed.

    `updates` are simulated after the `warmup`, which is a tenth of them if it is None. `seed` is
    that of the compute times, `events` are deaths and joins.

    Raises:
        DataError: events that are impossible or come too late, or all workers die too early.
        ConfigError: the strategy does not fit the workers.
    """
    sim = Simulation(workers, strategy, seed=seed, events=events)
    sim.run_until(updates // 10 if warmup is None else warmup)
    start, version, before = sim.now, sim.version, sim.seconds.copy()
    gradients, wasted = -sim.gradients, -sim.wasted
    sim.run_until(version + updates)
    gradients, wasted = gradients + sim.gradients, wasted + sim.wasted
    present, waited = sim.seconds - before
    last, seconds = max((event.at_s for event in events), default=0.0), sim.now - start
    if last > sim.now or not gradients:
        raise DataError(
            f"{sim.version} updates end at {sim.now:.3g} s, and the last worker dies or joins at "
            f"{last:g} s; simulate more updates, or choose other times"
        )
    staleness = sim.staleness[version:]
    return Prediction(
        seconds=seconds,
        updates_per_s=(sim.version - version) / seconds,
        gradients_per_s=gradients / seconds,
        efficiency=gradients / seconds / sum(1.0 / worker.step_s for worker in workers),
        waiting_share=float(waited.sum() / present.sum()),
        waiting=tuple(
            float(w / s) if s > 0 else None for w, s in zip(waited, present, strict=True)
        ),
        wasted_share=wasted / (gradients + wasted),
        staleness=Staleness.of("all", Counter(tau for _, tau in staleness)),
        workers=tuple(
            Staleness.of(worker.name, Counter(tau for by, tau in staleness if by == rank))
            for rank, worker in enumerate(workers)
        ),
    )
