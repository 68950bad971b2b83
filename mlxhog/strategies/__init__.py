"""Training strategies: the classes that run the choices of `mlxhog.config.strategies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mlxhog.config import strategies as choices
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategy import StrategyChoice, of
from mlxhog.errors import ConfigError
from mlxhog.strategies.averaging import AvgRuns, DiLoCo, FedProx, LocalSGD, Scaffold
from mlxhog.strategies.context import Context, Idle, Lease, StrategyWorker, TicketPart, WriteResult
from mlxhog.strategies.disjoint import Disjoint
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.in_order import InOrder
from mlxhog.strategies.locked import SSP, Aig, AsyncPS, Locked
from mlxhog.strategies.recorded import Recorded
from mlxhog.strategies.strategy import Strategy
from mlxhog.strategies.sync import Sync

Run = Callable[[TrainConfig, int, int], Strategy]
"""Makes a strategy from a configuration, its workers at the start and at most."""


def _lock_free(config: TrainConfig, workers: int, max_workers: int) -> Strategy:
    """Lock-free workers; with `blocks` each on its own blocks.

    The rounds of `async_after` are another strategy, before the run changes to this one.
    """
    choice, run = config.strategy, Hogwild
    if isinstance(choice, choices.Hogwild) and choice.blocks == "disjoint":
        run = Disjoint
    return run(config, workers, max_workers)


RUNS: dict[type[StrategyChoice], Run] = {
    choices.Sync: Sync,
    choices.Hogwild: _lock_free,
    choices.Serial: _lock_free,
    choices.RoundRobin: InOrder,
    choices.Sim: InOrder,
    choices.LocalSGD: LocalSGD,
    choices.AvgRuns: AvgRuns,
    choices.FedProx: FedProx,
    choices.Scaffold: Scaffold,
    choices.DiLoCo: DiLoCo,
    choices.AsyncPS: AsyncPS,
    choices.SSP: SSP,
    choices.Locked: Locked,
    choices.Aig: Aig,
}
"""The strategy of each choice; a choice that is not listed runs as its nearest base class."""

R = TypeVar("R", bound=Run)


def runs(choice: type[StrategyChoice]) -> Callable[[R], R]:
    """Decorate a strategy, or a function that returns one, to run a choice."""

    def declare(run: R) -> R:
        RUNS[choice] = run
        return run

    return declare


def repeating() -> tuple[str, ...]:
    """Names of the strategies whose runs end with the same bits, whatever the timing."""
    every = STRATEGIES.known().items()
    return tuple(name for name, one in every if issubclass(one, StrategyChoice) and one.repeats)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """The strategy of a configuration, for a number of workers.

    Args:
        config: of the run, with a chosen strategy.
        workers: number at the start.
        max_workers: largest number at a time; by default that of the start.

    Raises:
        ConfigError: its runs do not repeat although they have to, it cannot have this number of
            workers, or no class runs it.
    """
    chosen = of(config, StrategyChoice)
    if config.determinism in ("record", "replay"):
        return Recorded(config, workers, max_workers)
    if config.determinism == "rounds" and not chosen.repeats:
        raise ConfigError(
            f"determinism=rounds: a run of strategy {chosen.name} is never the same twice; take "
            f"one of {', '.join(repeating())}, or record hogwild: determinism=record"
        )
    run = next((RUNS[one] for one in type(chosen).__mro__ if one in RUNS), None)
    if run is None:
        name = type(chosen).__name__
        raise ConfigError(
            f"no class runs strategy {chosen.name}; put @runs({name}) of mlxhog.strategies before "
            "the class that does"
        )
    return run(config, workers, max_workers)


__all__ = [
    "RUNS", "Context", "Idle", "Lease", "WriteResult", "TicketPart", "Strategy", "StrategyWorker",
    "build", "repeating", "runs",
]  # fmt: skip
