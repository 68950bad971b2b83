"""Stochastic gradient descent, plain and with momentum, in the semantics of torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog.config import optimizers
from mlxhog.metal.kernels.step_rules import momentum_hp, sgd_hp
from mlxhog.optim import metal_steps
from mlxhog.optim.rule import Fused, Pairs, Step, Target, Use, rule_of
from mlxhog.optim.updates import Float32


@dataclass(frozen=True, kw_only=True)
class SGD(Fused):
    """`w -= lr * (g + weight_decay * w)`; no state."""

    weight_decay: float = 0.0
    native: bool = True
    state_segments: tuple[str, ...] = ()
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def rates(self, step: Step, weight_decay: float) -> Float32:
        """The step size and the decay."""
        return sgd_hp(lr=step.lr, weight_decay=weight_decay)

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update; a gradient is its own direction, so all of this is writing."""
        with target.writing():
            super().update(target, pairs, step)


@dataclass(frozen=True, kw_only=True)
class Momentum(Fused):
    """`m = momentum * m + g + weight_decay * w; w -= lr * m`, with `m` private.

    Rows that a gradient does not touch keep their momentum.
    Source: torch.optim.SGD (dampening 0); its first step, m = g, is ours from m = 0.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    native: bool = True
    state_segments: tuple[str, ...] = ("m",)
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.MOMENTUM

    def rates(self, step: Step, weight_decay: float) -> Float32:
        """The step size, the decay, and the share of the mean that is kept."""
        return momentum_hp(
            lr=step.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=weight_decay
        )


@rule_of.register(optimizers.SGD)
def _(choice: optimizers.SGD, use: Use) -> SGD:
    return SGD(weight_decay=choice.weight_decay)


@rule_of.register(optimizers.Momentum)
def _(choice: optimizers.Momentum, use: Use) -> Momentum:
    return Momentum(momentum=choice.momentum, weight_decay=choice.weight_decay)
