"""Lion: the sign of a momentum, every element moves by lr (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxhog.optim.choice import Averaging
from mlxhog.optim.rule import Form, Kernel, Pairs, Step, Target, Write


@dataclass(frozen=True, kw_only=True)
class Lion(Averaging):
    """`w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)`, with `m` private.

    m is the exponential mean of g with decay beta2. Rows that a gradient does not touch keep it.

    Any gradient moves every element by lr, so P workers move it by up to P * lr while one
    computes. The steps of other rules shrink where gradients of different workers disagree.
    """

    name: ClassVar[str] = "lion"
    title: ClassVar[str] = "Lion"
    about: ClassVar[str] = "the sign of a momentum: every element moves by lr"
    lr_workers: ClassVar[str] = "sqrt"
    state_segments = ("m",)

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        rates = (step.grad_scale, *self.decays)

        def form(decays: bool) -> Form:
            return Form(Write(step.lr, coupled=self.weight_decay * decays), rates)

        target.step(Kernel("lion", ("m",)), pairs, form, step)
