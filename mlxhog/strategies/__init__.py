"""Training strategies: the classes that run the choices of `mlxhog.config.strategies`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mlxhog.config import local_strategies as local_choices
from mlxhog.config import strategies as choices
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategy import StrategyChoice, of
from mlxhog.errors import ConfigError
from mlxhog.strategies import backup_workers, sim
from mlxhog.strategies.aig import Aig
from mlxhog.strategies.async_ps import AsyncPS
from mlxhog.strategies.avg_runs import AvgRuns
from mlxhog.strategies.context import Context, Idle, Lease, StrategyWorker, TicketPart, WriteResult
from mlxhog.strategies.diloco import DiLoCo
from mlxhog.strategies.disjoint import Disjoint
from mlxhog.strategies.facts import RunFacts
from mlxhog.strategies.fedprox import FedProx
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.local_sgd import LocalSGD
from mlxhog.strategies.locked import Locked
from mlxhog.strategies.recorded import Recorded
from mlxhog.strategies.round_robin import RoundRobin
from mlxhog.strategies.scaffold import Scaffold
from mlxhog.strategies.sim import Sim
from mlxhog.strategies.ssp import SSP
from mlxhog.strategies.strategy import Strategy
from mlxhog.strategies.sync import Sync
from mlxhog.strategies.sync_then_hogwild import SyncThenHogwild


def _lock_free(choice: Any, facts: RunFacts, workers: int, max_workers: int) -> Strategy:
    """Lock-free workers; with `async_after` after rounds, with `blocks` each on its own blocks."""
    run = Hogwild
    if isinstance(choice, choices.Hogwild) and choice.async_after > 0:
        return SyncThenHogwild(choice, facts, workers, max_workers)
    if isinstance(choice, choices.Hogwild) and choice.blocks == "disjoint":
        run = Disjoint
    return run(choice, facts, workers, max_workers)


def _rounds(choice: Any, facts: RunFacts, workers: int, max_workers: int) -> Strategy:
    """Synchronous rounds; with backup workers they do not wait for all."""
    if choice.backup_workers:
        backup_workers.check(choice.backup_workers, workers)
        return backup_workers.SyncWithBackups(choice, facts, workers, max_workers)
    return Sync(choice, facts, workers, max_workers)


def _simulated(choice: Any, facts: RunFacts, workers: int, max_workers: int) -> Strategy:
    """One process that simulates workers."""
    sim.check(workers)
    return Sim(choice, facts, workers, max_workers)


Run = Callable[[Any, RunFacts, int, int], Strategy]
"""Makes a strategy from a choice, facts of the run, its workers at the start and at most."""

RUNS: dict[type[StrategyChoice], Run] = {
    choices.Sync: _rounds,
    choices.Hogwild: _lock_free,
    choices.Serial: _lock_free,
    choices.RoundRobin: RoundRobin,
    local_choices.LocalSGD: LocalSGD,
    local_choices.AvgRuns: AvgRuns,
    local_choices.FedProx: FedProx,
    local_choices.Scaffold: Scaffold,
    local_choices.DiLoCo: DiLoCo,
    choices.AsyncPS: AsyncPS,
    choices.SSP: SSP,
    choices.Locked: Locked,
    choices.Aig: Aig,
    choices.Sim: _simulated,
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
    chosen, facts = of(config, StrategyChoice), RunFacts.of(config)
    if config.determinism in ("record", "replay"):
        return Recorded(chosen, facts, workers, max_workers)
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
    return run(chosen, facts, workers, max_workers)


__all__ = [
    "RUNS", "Context", "Idle", "Lease", "WriteResult", "TicketPart", "RunFacts", "Strategy",
    "StrategyWorker", "build", "repeating", "runs",
]  # fmt: skip
