"""Adan: means of gradients and of their differences (Xie et al. 2022, arXiv:2208.06677).

Differences of successive gradients replace the gradient at a point ahead of Nesterov's momentum.
Bias corrections and the proximal weight decay are those of the authors' code,
https://github.com/sail-sg/Adan; its betas (0.98, 0.92, 0.99) are beta1, beta3, beta2 here, so that
beta2 is the decay of the second moment in every rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from mlxhog import _native
from mlxhog.config import optimizers
from mlxhog.optim import metal_steps
from mlxhog.optim.adamw import moments_of
from mlxhog.optim.directions import Direction, write
from mlxhog.optim.rule import Optimizer, Pairs, Step, Target, Use, float32, rule_of
from mlxhog.optim.sgd import SGD
from mlxhog.optim.updates import Float32


def adan_reference(
    g: Float32,
    m: Float32,
    diff: Float32,
    v: Float32,
    prev: Float32,
    *,
    beta1: float,
    beta2: float,
    beta3: float,
    bias1: float,
    bias2: float,
    bias3: float,
    eps: float,
    grad_scale: float,
    first: bool,
) -> tuple[Float32, Float32, Float32, Float32, Float32]:
    """Return the direction and the new `m`, `diff`, `v`, `prev`, rounded as the native ones.

    With s = grad_scale * g and d = s - prev (0 where `first`), m, diff and v are the exponential
    means of s, d and (s + beta3 * d)^2. The direction is
    (m / bias1 + beta3 * diff / bias3) / (sqrt(v / bias2) + eps).
    """
    s: Float32 = float32(grad_scale) * g
    d: Float32 = s - (s if first else prev)
    m = float32(beta1) * m + float32(1.0 - beta1) * s
    diff = float32(beta3) * diff + float32(1.0 - beta3) * d
    ahead: Float32 = s + float32(beta3) * d
    squared: Float32 = ahead * ahead
    v = float32(beta2) * v + float32(1.0 - beta2) * squared
    denominator: Float32 = np.sqrt(v) * float32(1.0 / math.sqrt(bias2)) + float32(eps)
    mean = float32(1.0 / bias1) * m + float32(beta3 / bias3) * diff
    return np.divide(mean, denominator), m, diff, v, s


ADAN: Final = Direction(("m", "diff", "v", "prev"), _native.adan_direction, adan_reference)


@dataclass(frozen=True, kw_only=True)
class Adan(Optimizer):
    """Adan with private state: `m`, `diff`, `v`, and the last gradient `prev`.

    A parameter with weight decay becomes (w - lr * u) / (1 + lr * weight_decay). Rows that a
    gradient does not touch keep their state; their next difference is to their last gradient.
    """

    beta1: float = 0.98
    beta2: float = 0.99
    beta3: float = 0.92
    eps: float = 1e-8
    weight_decay: float = 0.1
    native: bool = True
    state_segments: tuple[str, ...] = ADAN.state
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        rates = {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "beta3": self.beta3,
            "bias1": 1.0 - self.beta1**step.count,
            "bias2": 1.0 - self.beta2**step.count,
            "bias3": 1.0 - self.beta3**step.count,
            "eps": self.eps,
            "grad_scale": step.grad_scale,
            "first": step.count == 1,
        }
        by = SGD(weight_decay=self.weight_decay, native=self.native)
        for decays in (True, False):
            directions = (
                (slot, ADAN.of(target, slot, grad, rates, native=self.native))
                for slot, grad in pairs
                if (slot.name in target.decay) == decays
            )
            shrunk = 1.0 + step.lr * self.weight_decay if decays else 1.0
            write(target, directions, by, step, lr=step.lr / shrunk)


@rule_of.register(optimizers.Adan)
def _(choice: optimizers.Adan, use: Use) -> Adan:
    return Adan(**moments_of(choice), beta3=choice.beta3)
