"""What a run asks of its strategy before workers start, when they hold still, and when it is saved.

Strategies that keep copies of the parameters in the arena fill them first, and save them: without
them a resumed run would be another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mlxhog import updates
from mlxhog.arena import Arena
from mlxhog.config import TrainConfig
from mlxhog.strategies import avg_runs, round_robin


def begin(
    config: TrainConfig, workers: int, arena: Arena, kept: Mapping[str, Any] | None = None
) -> None:
    """Fill the strategy's segments, when the parameters are in place and no worker has started.

    Args:
        config: of the run.
        workers: of the run.
        arena: to fill.
        kept: what `position` of the same strategy and as many workers gave to a checkpoint, whose
            `kept_segments` are in place.
    """
    if config.strategy == "round_robin":
        round_robin.begin(arena, workers, kept)
    elif config.strategy == "avg_runs":
        avg_runs.begin(arena, workers, config.average_every, kept)


def settle(config: TrainConfig, workers: int, arena: Arena) -> None:
    """Make the parameters and counters what the run has reached; all workers hold still."""
    if config.strategy == "avg_runs":
        avg_runs.settle(arena, workers)


def kept_segments(config: TrainConfig, workers: int) -> tuple[str, ...]:
    """Copies of the parameters, by segment, without which a resumed run would be another one."""
    if config.strategy == "round_robin":
        return round_robin.copies(workers)
    return avg_runs.copies(workers) if config.strategy == "avg_runs" else ()


def position(config: TrainConfig, workers: int, arena: Arena) -> dict[str, Any] | None:
    """Where the strategy stands, for a checkpoint; None where it has nothing to say."""
    if config.strategy == "round_robin":
        found = round_robin.position(arena, workers)
    elif config.strategy == "avg_runs":
        found = avg_runs.position(arena, workers, config.average_every)
    else:
        return None
    return {"strategy": config.strategy, "workers": workers, **found}


def kept_copies(config: TrainConfig, workers: int) -> tuple[str, ...]:
    """The copies of `each_copy`, by segment."""
    alone = config.strategy != "avg_runs" or workers == 1
    return () if alone else avg_runs.copies(workers)


@contextlib.contextmanager
def each_copy(
    config: TrainConfig, workers: int, arena: Arena
) -> Iterator[Sequence[Callable[[], None]]]:
    """What puts each worker's own parameters in the place of their average, while all hold still.

    Empty where workers have none. The average is back when the block ends.
    """
    names = kept_copies(config, workers)
    if not names:
        yield ()
        return
    n = arena.layout.probe.offset
    average, shared = arena.params[:n].copy(), arena.params[:n]
    copies = [arena.segment(name)[:n] for name in names]
    try:
        yield [partial(updates.snapshot, shared, copy) for copy in copies]
    finally:
        updates.snapshot(shared, average)


def worse_than_a_copy(average: float, copies: Sequence[float]) -> str | None:
    """A warning where the average of the copies is worse than the best of them.

    Args:
        average: its held-out bits per byte.
        copies: those of each worker's own parameters.
    """
    best = min(copies, default=average)
    if best >= average:
        return None
    return (
        f"the average of {len(copies)} runs has {average:.3f} bits per byte, the parameters of "
        f"worker {copies.index(best) + 1} alone {best:.3f}: averaging did not help; average more "
        "often with --average-every, or use hogwild or sync"
    )
