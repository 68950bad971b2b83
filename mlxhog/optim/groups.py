"""Learning rates by group: factors of lr for the embedding, the head, and gates, biases and norms.

A rule takes the step of each group with that group's lr, in whatever form it has (native, Metal,
NumPy), so state, bias correction, records and write modes are the rule's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mlxhog.errors import ConfigError
from mlxhog.optim.choice import GROUPS, OptimizerChoice
from mlxhog.optim.rule import Around, Optimizer, Pairs, UpdateStep, UpdateTarget

Groups = Mapping[str, frozenset[str]]
"""Names of the parameters of each of `GROUPS`, and "table"; empty for what the model lacks."""

_LACKS = {
    "embedding": "the model has no embedding; leave it out",
    "head": "the model's head is its embedding (tied); leave it out: embedding_lr moves both",
    "scalar": "all parameters are embedding, head or hidden matrices; leave it out",
}


def factors(choice: OptimizerChoice, groups: Groups) -> dict[str, float]:
    """Return the factor of each parameter whose factor is not 1.

    Raises:
        ConfigError: a factor of a group that the model lacks.
    """
    by_name: dict[str, float] = {}
    for group, number in GROUPS.items():
        factor = getattr(choice, number, 1.0)
        if factor != 1.0 and not groups[group]:
            raise ConfigError(f"{number} is {factor:g}, and {_LACKS[group]}")
        by_name |= dict.fromkeys(groups[group] if factor != 1.0 else (), factor)
    return by_name


class Grouped(Around):
    """A rule that moves some parameters with a multiple of lr."""

    def __init__(self, rule: Optimizer, factors: Mapping[str, float]) -> None:
        """Wrap a rule, with the factors of lr, 1 for all other parameters."""
        super().__init__(rule)
        self._factors = factors

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        groups: dict[float, list[int]] = {}
        for k, (slot, _) in enumerate(pairs):
            groups.setdefault(self._factors.get(slot.name, 1.0), []).append(k)
        for factor, members in groups.items():
            part = [pairs[k] for k in members]
            self.rule.update(target, part, replace(step, lr=factor * step.lr))
