"""The list of training strategies, by the name that `--strategy` takes."""

from __future__ import annotations

from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.strategies import backup_workers
from mlxhog.strategies.aig import Aig
from mlxhog.strategies.async_ps import AsyncPS
from mlxhog.strategies.avg_runs import AvgRuns
from mlxhog.strategies.context import Context, Idle, Lease, Outcome, Part, StrategyWorker
from mlxhog.strategies.diloco import DiLoCo
from mlxhog.strategies.disjoint import Disjoint
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

STRATEGIES: dict[str, type[Strategy]] = {
    "serial": Hogwild,  # with one worker
    "hogwild": Hogwild,
    "sync": Sync,
    "round_robin": RoundRobin,
    "avg_runs": AvgRuns,
    "async_ps": AsyncPS,
    "ssp": SSP,
    "locked": Locked,
    "aig": Aig,
    "sim": Sim,
    "local_sgd": LocalSGD,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "diloco": DiLoCo,
}


def repeating() -> tuple[str, ...]:
    """Strategies of which two runs end with the same bits, whatever timing does."""
    return tuple(name for name, kind in STRATEGIES.items() if name == "serial" or kind.repeats)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """The strategy that the configuration names, for so many workers.

    Args:
        config: of the run.
        workers: that it begins with.
        max_workers: that it may have at a time; as many by default.

    Raises:
        ConfigError: unknown name, one whose runs do not repeat where they have to, or more workers
            than the strategy has.
    """
    name = config.strategy
    if name not in STRATEGIES:
        raise ConfigError(f"no strategy {name!r}; choose from {', '.join(STRATEGIES)}")
    if config.determinism in ("record", "replay"):
        return Recorded(config, workers, max_workers)
    if config.determinism == "rounds" and name not in repeating():
        raise ConfigError(
            f"determinism=rounds: a run of strategy {name} is never the same twice; those of "
            f"{', '.join(repeating())} are, or record hogwild: determinism=record"
        )
    if name == "sim" and workers > 1:
        raise ConfigError(
            f"strategy sim simulates its workers in one process, and workers asks for {workers}; "
            "name one, such as --workers mlx:cpu, or take the simulated strategy itself"
        )
    if name == "sync" and config.backup_workers:
        backup_workers.check(config, workers)
        return backup_workers.SyncWithBackups(config, workers, max_workers)
    if name == "hogwild" and config.async_after > 0:
        return SyncThenHogwild(config, workers, max_workers)
    if name == "hogwild" and config.blocks == "disjoint":
        return Disjoint(config, workers, max_workers)
    return STRATEGIES[name](config, workers, max_workers)


__all__ = [
    "STRATEGIES", "Context", "Idle", "Lease", "Outcome", "Part", "Strategy", "StrategyWorker",
    "build", "repeating",
]  # fmt: skip
