"""What becomes of the workers' optimizer state when their parameters are averaged.

    --inner-state  each worker goes on with
    keep           its own moments and step count
    average        the mean of all workers' moments, and its own step count
    reset          none: its next step is its first

The mean is put together in segments of its own, one per kind of moment, so that a worker that dies
meanwhile leaves nothing that could be averaged twice:

    segment              dtype    meaning
    inner.m, inner.v ..  float32  means of the workers' segments m.1, m.2, .. and so on
"""

from __future__ import annotations

import numpy as np

from mlxhog import optim
from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.config.config import TrainConfig
from mlxhog.optim import updates


def kinds(config: TrainConfig) -> tuple[str, ...]:
    """Kinds of private optimizer state that change at an average."""
    if config.inner_state == "keep":
        return ()
    return optim.build(config).state_segments


def segments(config: TrainConfig) -> dict[str, tuple[str, int]]:
    """The segments of the table above."""
    if config.inner_state != "average":
        return {}
    return {f"inner.{kind}": ("float32", PARAMETER_COPY) for kind in kinds(config)}


def average_share(arena: Arena, config: TrainConfig, workers: int, span: slice) -> None:
    """Average a part of every kind, in rank order, for `take_over`."""
    if config.inner_state != "average":
        return
    for kind in kinds(config):
        first, *others = (arena.segment(f"{kind}.{rank + 1}")[span] for rank in range(workers))
        mean = arena.segment(f"inner.{kind}")[span]
        np.copyto(mean, first)
        for other in others:
            mean += other
        mean *= np.float32(1.0 / workers)


def take_over(arena: Arena, config: TrainConfig, rank: int) -> None:
    """Give a worker the state that it goes on with; doing it twice changes nothing."""
    for kind in kinds(config):
        own = arena.segment(f"{kind}.{rank + 1}")
        if config.inner_state == "average":
            updates.snapshot(own, arena.segment(f"inner.{kind}"))
        else:
            own.fill(0.0)
    if config.inner_state == "reset":
        arena.workers.entry(rank + 1).opt_step = 0
