"""Training strategies: each a class with its numbers, its answers to a run, and its worker."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from mlxhog import optim
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.strategies.averaging import AvgRuns, DiLoCo, FedProx, LocalSGD, Scaffold
from mlxhog.strategies.hogwild import Hogwild, Serial
from mlxhog.strategies.in_order import RoundRobin, Sim
from mlxhog.strategies.locked import SSP, Aig, AsyncPS, Locked
from mlxhog.strategies.strategy import (
    Idle,
    Lease,
    RunFacts,
    Strategy,
    StrategyWorker,
    TicketPart,
    WriteResult,
)
from mlxhog.strategies.sync import Sync

for _strategy in (
    Sync, Hogwild, Serial, RoundRobin, LocalSGD, AvgRuns, FedProx, Scaffold, DiLoCo, AsyncPS, SSP,
    Locked, Aig, Sim,
):  # fmt: skip
    STRATEGIES.register(_strategy)


def build(config: TrainConfig, workers: int, max_workers: int = 0) -> Strategy:
    """The strategy that a configuration has chosen, for a run with `workers` at the start.

    Raises:
        ConfigError: its runs do not repeat although they have to, it cannot have this number of
            workers, or a class of the user's own would be replaced by one that an option takes.
    """
    chosen = config.strategy
    assert chosen is not None, "a strategy that is open has no workers"
    if config.determinism == "rounds" and not chosen.repeats:
        every: Any = STRATEGIES.known().items()
        repeating = ", ".join(name for name, one in every if one.repeats)
        raise ConfigError(
            f"determinism=rounds: a run of strategy {chosen.name} is never the same twice; take "
            f"one of {repeating}, or record hogwild: determinism=record"
        )
    kind, option = type(chosen), ""
    if config.determinism in ("record", "replay"):
        from mlxhog.strategies.recorded import Recorded

        kind, option = Recorded, f"determinism={config.determinism}"
    elif isinstance(chosen, Hogwild) and chosen.blocks == "disjoint":
        from mlxhog.strategies.disjoint import Disjoint

        kind, option = Disjoint, "blocks=disjoint"
    if option and chosen.is_own():
        raise ConfigError(
            f"{option} has workers of its own, which would take the place of those of your "
            f"strategy {chosen.name}; leave it out, or take strategy=hogwild"
        )
    numbers = {field.name: getattr(chosen, field.name) for field in fields(kind)}
    resumed = config.resume is not None
    facts = RunFacts(
        sequences_per_ticket=config.sequences_per_ticket,
        seq_len=config.seq_len,
        seed=config.seed,
        clip=config.clip,
        overlap=config.overlap,
        determinism=config.determinism,
        prediction=config.prediction,
        budget=(None, None) if resumed else (config.steps, config.tokens),
        reset_optimizer=config.reset_optimizer,
        workers_factor=optim.chosen(config).workers_factor,
    )
    return replace(kind(**numbers), run=facts, workers=workers, max_workers=max_workers)


__all__ = [
    "SSP", "Aig", "AsyncPS", "AvgRuns", "DiLoCo", "FedProx", "Hogwild", "Idle", "Lease",
    "LocalSGD", "Locked", "RoundRobin", "Scaffold", "Serial", "Sim", "Strategy", "StrategyWorker",
    "Sync", "TicketPart", "WriteResult", "build",
]  # fmt: skip
