"""Stochastic gradient descent, plain and with momentum, in the semantics of torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog.config import optimizers
from mlxhog.optim.directions import write
from mlxhog.optim.rule import Form, Kernel, Optimizer, Pairs, Step, Target, Use, Write, rule_of


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """`w -= lr * (g + weight_decay * w)`; no state."""

    weight_decay: float = 0.0

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update; a gradient is its own direction, so all of this is writing."""
        decay = self.weight_decay
        write(target, pairs, step, lr=step.lr, weight_decay=decay, scale=step.grad_scale)


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """`m = momentum * m + g + weight_decay * w; w -= lr * m`, with `m` private.

    Rows that a gradient does not touch keep their momentum.
    Source: torch.optim.SGD (dampening 0); its first step, m = g, is ours from m = 0.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    state_segments = ("m",)

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""

        def form(decays: bool) -> Form:
            decay = self.weight_decay * decays
            return Form(Write(step.lr), (step.grad_scale, self.momentum, self.nesterov, decay))

        target.step(Kernel("momentum", ("m",)), pairs, form, step)


@rule_of.register(optimizers.SGD)
def _(choice: optimizers.SGD, use: Use) -> SGD:
    return SGD(weight_decay=choice.weight_decay)


@rule_of.register(optimizers.Momentum)
def _(choice: optimizers.Momentum, use: Use) -> Momentum:
    return Momentum(momentum=choice.momentum, weight_decay=choice.weight_decay)
