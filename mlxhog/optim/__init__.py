"""Optimizers: turn a gradient into an update, and apply it in one fused pass over shared memory.

An update is a direction, then its write (`rule.py`). Native code computes most directions
element-wise, in the pass that writes them (`elementwise.py`); Muon, APOLLO and SOAP compute those
of hidden matrices first. Metal writes with the same roundings (`metal_steps.py`).

Moments are private to a worker. AdamW and Muon may share one pair between all workers, written
under the locks of the parameters. NumPy is imported where it is used, so `--help` stays fast.
"""

from __future__ import annotations

from typing import Final, cast

from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.optim.apollo import Apollo, ApolloMini
from mlxhog.optim.component import (
    GROUPS,
    Adaptive,
    Decayed,
    GroupedRates,
    Groups,
    MomentAverages,
    OptimizerComponent,
    RunContext,
    factors,
    optimizer_of,
)
from mlxhog.optim.delay_feedback import DelayFeedback
from mlxhog.optim.elementwise import SGD, AdamW, Adan, Lion, Momentum
from mlxhog.optim.gradients import Float32
from mlxhog.optim.muon import Muon
from mlxhog.optim.rule import Optimizer, Pairs, UpdateStep, UpdateTarget, directions, write
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Selection, Sparsified
from mlxhog.optim.tables import WithTables

for _optimizer in (Muon, AdamW, Adan, Apollo, ApolloMini, Lion, Momentum, SGD, Soap):
    OPTIMIZERS.register(_optimizer)
DEFAULT: Final = Muon


def by_name(name: str) -> OptimizerComponent:
    """Return the optimizer of a name with its defaults, or raise `UnknownComponent`."""
    return cast(type[OptimizerComponent], OPTIMIZERS.find(name))()


def open_hyperparameters(config: TrainConfig) -> dict[str, object]:
    """Return lr and the optimizer's hyperparameters that may be "auto", by their flat names."""
    optimizer = optimizer_of(config)
    is_open = {
        spec.flat: getattr(optimizer, name)
        for name, spec in options(type(optimizer)).items()
        if spec.optional and spec.none == "auto"
    }
    return {"lr": config.lr, **dict(sorted(is_open.items()))}


__all__ = [
    "DEFAULT", "GROUPS", "SGD", "AdamW", "Adan", "Adaptive", "Apollo", "ApolloMini", "Decayed",
    "DelayFeedback", "Float32", "GroupedRates", "Groups", "Lion", "MomentAverages", "Momentum",
    "Muon", "Optimizer", "OptimizerComponent", "Pairs", "RunContext", "Selection", "Soap",
    "Sparsified", "UpdateStep", "UpdateTarget", "WithTables", "by_name", "directions", "factors",
    "open_hyperparameters", "optimizer_of", "write",
]  # fmt: skip
