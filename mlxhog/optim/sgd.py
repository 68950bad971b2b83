"""Stochastic gradient descent, plain and with momentum, in the semantics of torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.options import option
from mlxhog.optim.choice import Decayed
from mlxhog.optim.directions import write
from mlxhog.optim.rule import Form, Kernel, Pairs, Step, Target, Write


@dataclass(frozen=True, kw_only=True)
class Momentum(Decayed):
    """`m = momentum * m + g + weight_decay * w; w -= lr * m`, with `m` private.

    Rows that a gradient does not touch keep their momentum.
    Source: torch.optim.SGD (dampening 0); its first step, m = g, is ours from m = 0.
    """

    name: ClassVar[str] = "momentum"
    title: ClassVar[str] = "SGD with momentum"
    about: ClassVar[str] = "gradient descent with momentum, as torch.optim.SGD"
    state_segments = ("m",)

    momentum: float = option(0.9, "share of the last step that is added again", low=0, below=1)

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""

        def form(decays: bool) -> Form:
            nesterov, decay = False, self.weight_decay * decays
            return Form(Write(step.lr), (step.grad_scale, self.momentum, nesterov, decay))

        target.step(Kernel("momentum", ("m",)), pairs, form, step)


@dataclass(frozen=True, kw_only=True)
class SGD(Decayed):
    """`w -= lr * (g + weight_decay * w)`; no state."""

    name: ClassVar[str] = "sgd"
    title: ClassVar[str] = "plain SGD"
    about: ClassVar[str] = "plain gradient descent"

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update; a gradient is its own direction, so all of this is writing."""
        decay = self.weight_decay
        write(target, pairs, step, lr=step.lr, weight_decay=decay, scale=step.grad_scale)
