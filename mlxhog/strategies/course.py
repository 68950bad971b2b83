"""What a run asks of its strategy before workers start, when they hold still, and when it is saved.

Strategies that keep copies of the parameters in the arena fill them first, and save them: without
them a resumed run would be another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mlxhog import strategies
from mlxhog.arena import Arena
from mlxhog.config.config import TrainConfig
from mlxhog.data.ledger import Ledger
from mlxhog.optim import updates
from mlxhog.strategies import avg_runs, hogwild, round_robin, sync


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


def limit_steps(arena: Arena, ledger: Ledger, steps: int | None) -> None:
    """Note the budget of this call in steps (None: no limit), behind `begin`.

    Strategies that deal batches out by number count to it by themselves (`Context.step_limit`).
    """
    hogwild.limit_steps(arena, ledger, steps)


def steps_done(config: TrainConfig, workers: int, arena: Arena, ledger: Ledger) -> int:
    """Steps of this call that are over for good, exact whoever died.

    It comes from what the strategy decides by: the ledger, or its own words. A step that was torn
    (its worker died while adding it) is over, unless the ledger hands it out again; a round of
    `sync` is when all have ended it. So the count reaches the budget, never exceeds it, and what
    it lacks is what a resumed run has to do.
    """
    if config.strategy == "round_robin":
        return round_robin.steps_done(arena)
    if config.strategy == "avg_runs":
        return avg_runs.steps_done(arena, workers)
    if config.strategy == "sync":
        return sync.rounds_done(arena.segment("sync.words"), workers)
    if not strategies.starts_synchronous(config, workers):
        return hogwild.tickets_done(arena, ledger)
    words = arena.segment("sync.words")
    rounds = sync.rounds_done(words, workers)
    if not sync.is_over(words, workers):
        return rounds
    return rounds + hogwild.tickets_done(arena, ledger) - rounds * workers


def between_steps(config: TrainConfig, workers: int, arena: Arena) -> bool:
    """Whether nothing that workers do together is under way, as far as the strategy has noted.

    Then a worker that is starting has nothing to go on with while the arena is to hold still.
    """
    if config.strategy == "round_robin":
        return round_robin.between_turns(arena)
    if config.strategy == "avg_runs":
        return avg_runs.between_averagings(arena, workers)
    if config.strategy == "sync" or strategies.starts_synchronous(config, workers):
        return sync.between_rounds(arena.segment("sync.words"), workers)
    return True


def settle(config: TrainConfig, workers: int, arena: Arena, ledger: Ledger) -> None:
    """Make the parameters and counters what the run has reached.

    All workers hold still, or are dead: then what they left half done is ended where it can be.
    """
    if config.strategy == "round_robin":
        round_robin.settle(arena, workers, ledger)
    elif config.strategy == "avg_runs":
        avg_runs.settle(arena, workers, ledger)
    arena.counters.store("steps", steps_done(config, workers, arena, ledger))


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
