"""What a worker of a classic run is given when it is spawned; small, however large the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlxhog.arena import ArenaHandle
from mlxhog.classic.problem import Kernel
from mlxhog.classic.schemes import Scheme


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; picklable for `spawn`.

    Attributes:
        handle: the arena.
        rank: 0 .. workers - 1; its slot in the worker table is rank + 1.
        workers: number of workers in the run.
        scheme: how it writes.
        kernel: builds the native problem.
        shapes: of the data, by name.
        batch: examples in a step.
        queue: examples it claims at a time from the queue; 0 where it is dealt shares.
        hot: see `ClassicConfig.hot`.
        period: see `ClassicConfig.period`.
        probe_every: examples between two that raise the probe, at least 1.
        core: the core it stays on; None is wherever the system puts it.
    """

    handle: ArenaHandle
    rank: int
    workers: int
    scheme: Scheme
    kernel: Kernel
    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    queue: int
    hot: int
    period: int
    probe_every: int
    core: int | None
