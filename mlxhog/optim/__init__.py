"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each is a direction, then a write (`rule.py`). Native code computes most directions element by
element, in the pass that writes them (`elementwise.py`); Muon, APOLLO and SOAP compute those of
hidden matrices first. Metal writes with the same roundings (`metal_steps.py`).

Moments are private to a worker: every step already carries its history. AdamW and Muon may share
one pair between all workers, written under the locks of the parameters.

Nothing here imports NumPy before it is used, so that help and errors about options are fast.
"""

from __future__ import annotations

from typing import Any, Final

from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.optim.apollo import Apollo, ApolloMini
from mlxhog.optim.choice import (
    GROUPS,
    Adaptive,
    Averaging,
    Decayed,
    OptimizerChoice,
    Use,
    optimizer_of,
)
from mlxhog.optim.delay_feedback import DelayFeedback
from mlxhog.optim.elementwise import SGD, AdamW, Adan, Lion, Momentum
from mlxhog.optim.gradients import Float32
from mlxhog.optim.groups import Grouped, Groups, factors
from mlxhog.optim.muon import Muon
from mlxhog.optim.rule import Optimizer, Pairs, UpdateStep, UpdateTarget, directions, write
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Selection, Sparsified
from mlxhog.optim.tables import WithTables

for _optimizer in (Muon, AdamW, Adan, Apollo, ApolloMini, Lion, Momentum, SGD, Soap):
    OPTIMIZERS.register(_optimizer)
DEFAULT: Final = Muon


def by_name(name: str) -> OptimizerChoice:
    """Return the optimizer of a name, with its defaults; an unknown one is `UnknownChoice`."""
    choice: Any = OPTIMIZERS.find(name)
    made: OptimizerChoice = choice()
    return made


def open_numbers(config: TrainConfig) -> dict[str, object]:
    """Return lr and the optimizer's numbers that may be "auto", by their flat names."""
    choice = optimizer_of(config)
    numbers = {
        spec.flat: getattr(choice, name)
        for name, spec in options(type(choice)).items()
        if spec.optional and spec.none == "auto"
    }
    return {"lr": config.lr, **dict(sorted(numbers.items()))}


__all__ = [
    "DEFAULT", "GROUPS", "SGD", "AdamW", "Adan", "Adaptive", "Apollo", "ApolloMini", "Averaging",
    "Decayed", "DelayFeedback", "Float32", "Grouped", "Groups", "Lion", "Momentum", "Muon",
    "Optimizer", "OptimizerChoice", "Pairs", "Selection", "Soap", "Sparsified", "UpdateStep",
    "UpdateTarget", "Use", "WithTables", "by_name", "directions", "factors", "open_numbers",
    "optimizer_of", "write",
]  # fmt: skip
