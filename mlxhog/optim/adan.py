"""Adan: means of gradients and of their differences (Xie et al. 2022, arXiv:2208.06677).

Differences of successive gradients replace the gradient at a point ahead of Nesterov's momentum.
Bias corrections and the proximal weight decay are those of the authors' code,
https://github.com/sail-sg/Adan; its betas (0.98, 0.92, 0.99) are beta1, beta3, beta2 here, so that
beta2 is the decay of the second moment in every rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mlxhog.config.options import option
from mlxhog.optim.choice import Adaptive
from mlxhog.optim.rule import Form, Kernel, Pairs, Step, Target, Write


@dataclass(frozen=True, kw_only=True)
class Adan(Adaptive):
    """Adan with private state: `m`, `diff`, `v`, and the last gradient `prev`.

    With d = g - prev, m, diff and v are the exponential means of g, d and (g + beta3 * d)^2, and
    u = (m / bias1 + beta3 * diff / bias3) / (sqrt(v / bias2) + eps). A parameter with weight decay
    becomes (w - lr * u) / (1 + lr * weight_decay). Rows that a gradient does not touch keep their
    state; their next difference is to their last gradient.
    """

    name: ClassVar[str] = "adan"
    title: ClassVar[str] = "Adan"
    about: ClassVar[str] = "means of gradients and of their differences"

    beta3: float = option(0.92, "decay of the mean of gradients' differences", low=0, below=1)
    state_segments = ("m", "diff", "v", "prev")

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        betas = (self.decay1, self.beta2, self.beta3)
        bias1, bias2, bias3 = (1.0 - beta**step.count for beta in betas)
        means = (*self.decays, self.beta3, 1.0 - self.beta3)
        steps = (1.0 / bias1, self.beta3 / bias3, 1.0 / math.sqrt(bias2))
        rates = (step.grad_scale, *means, *steps, self.eps, step.count == 1)

        def form(decays: bool) -> Form:
            decay = self.weight_decay * decays
            return Form(Write(step.lr / (1.0 + step.lr * decay), coupled=decay), rates)

        target.step(Kernel("adan", self.state_segments), pairs, form, step)
