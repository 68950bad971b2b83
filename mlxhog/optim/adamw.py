"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from mlxhog.optim.choice import Adaptive, Sharing, like
from mlxhog.optim.rule import Form, Kernel, Pairs, Step, Target, Write


@dataclass(frozen=True, kw_only=True)
class AdamW(Sharing):
    """AdamW. Bias correction counts the updates of the moments, private or shared.

    Rows that a gradient does not touch keep both moments, as in torch.optim.SparseAdam; a dense
    gradient decays all of them.
    """

    name: ClassVar[str] = "adamw"
    title: ClassVar[str] = "AdamW"
    about: ClassVar[str] = "Adam with decoupled weight decay"

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        count = step.shared_count if self.use.shared else step.count
        bias1, bias2 = 1.0 - self.decay1**count, 1.0 - self.beta2**count
        rates = (step.grad_scale, *self.decays, 1.0 / math.sqrt(bias2), self.eps)

        def form(decays: bool) -> Form:
            decay = step.lr * self.weight_decay * decays
            return Form(Write(step.lr / bias1, decoupled=decay), rates)

        target.step(Kernel("adam", ("m", "v"), self.use.shared), pairs, form, step)


class BesideAdamW(Adaptive):
    """A rule for hidden matrices, beside AdamW for all other parameters."""

    beside: ClassVar[str] = "adamw"

    @cached_property
    def adamw(self) -> AdamW:
        """The rule of other parameters; its moments are shared if those of hidden matrices are."""
        return like(AdamW, self)
