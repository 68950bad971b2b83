"""Training strategies: what runs the choices of `mlxhog.config.strategies`."""

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
from mlxhog.strategies.context import Context, Idle, Lease, Outcome, Part, StrategyWorker
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
    """Lock-free workers, or what their numbers make of them."""
    run = Hogwild
    if isinstance(choice, choices.Hogwild) and choice.async_after > 0:
        return SyncThenHogwild(choice, facts, workers, max_workers)
    if isinstance(choice, choices.Hogwild) and choice.blocks == "disjoint":
        run = Disjoint
    return run(choice, facts, workers, max_workers)


def _rounds(choice: Any, facts: RunFacts, workers: int, max_workers: int) -> Strategy:
    """Rounds, which may not wait for all workers."""
    if choice.backup_workers:
        backup_workers.check(choice.backup_workers, workers)
        return backup_workers.SyncWithBackups(choice, facts, workers, max_workers)
    return Sync(choice, facts, workers, max_workers)


def _simulated(choice: Any, facts: RunFacts, workers: int, max_workers: int) -> Strategy:
    """One process that simulates workers."""
    sim.check(workers)
    return Sim(choice, facts, workers, max_workers)


Run = Callable[[Any, RunFacts, int, int], Strategy]
"""Makes a strategy of its choice, the run's facts, the workers of its start and the most it has."""

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
"""What runs each choice; one that is not here runs as the choice that it is a subclass of."""

R = TypeVar("R", bound=Run)


def runs(choice: type[StrategyChoice]) -> Callable[[R], R]:
    """Declare what runs a choice; as a decorator of a strategy, or of a function that picks one."""

    def declare(run: R) -> R:
        RUNS[choice] = run
        return run

    return declare


def repeating() -> tuple[str, ...]:
    """Strategies of which two runs end with the same bits, whatever timing does."""
    every = STRATEGIES.known().items()
    return tuple(name for name, one in every if issubclass(one, StrategyChoice) and one.repeats)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """The strategy of a configuration, for a number of workers.

    Args:
        config: of the run, whose strategy is not open.
        workers: that it begins with.
        max_workers: that it may have at a time; as many by default.

    Raises:
        ConfigError: one whose runs do not repeat where they have to, more workers than the strategy
            has, or a strategy of one's own that nothing runs.
    """
    chosen, facts = of(config, StrategyChoice), RunFacts.of(config)
    if config.determinism in ("record", "replay"):
        return Recorded(chosen, facts, workers, max_workers)
    if config.determinism == "rounds" and not chosen.repeats:
        raise ConfigError(
            f"determinism=rounds: a run of strategy {chosen.name} is never the same twice; those "
            f"of {', '.join(repeating())} are, or record hogwild: determinism=record"
        )
    run = next((RUNS[one] for one in type(chosen).__mro__ if one in RUNS), None)
    if run is None:
        name = type(chosen).__name__
        raise ConfigError(
            f"strategy {chosen.name} has numbers and nothing that runs it; put @runs({name}), of "
            "mlxhog.strategies, before the class that does"
        )
    return run(chosen, facts, workers, max_workers)


__all__ = [
    "RUNS", "Context", "Idle", "Lease", "Outcome", "Part", "RunFacts", "Strategy",
    "StrategyWorker", "build", "repeating", "runs",
]  # fmt: skip
