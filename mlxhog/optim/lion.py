"""Lion: the sign of a momentum, every element moves by lr (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog.config import optimizers
from mlxhog.optim.adamw import decays_of
from mlxhog.optim.rule import Form, Kernel, Optimizer, Pairs, Step, Target, Use, Write, rule_of


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """`w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)`, with `m` private.

    m is the exponential mean of g with decay beta2. Rows that a gradient does not touch keep it.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    state_segments = ("m",)

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        rates = (step.grad_scale, *decays_of(self.beta1, self.beta2))

        def form(decays: bool) -> Form:
            return Form(Write(step.lr, coupled=self.weight_decay * decays), rates)

        target.step(Kernel("lion", ("m",)), pairs, form, step)


@rule_of.register(optimizers.Lion)
def _(choice: optimizers.Lion, use: Use) -> Lion:
    return Lion(beta1=choice.decay1, beta2=choice.beta2, weight_decay=choice.weight_decay)
