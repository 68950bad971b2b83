"""Lion: the sign of a momentum, every element moves by lr (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mlxhog import _native
from mlxhog.config import optimizers
from mlxhog.optim import metal_steps
from mlxhog.optim.directions import Direction, write
from mlxhog.optim.rule import Optimizer, Pairs, Step, Target, Use, float32, rule_of
from mlxhog.optim.sgd import SGD
from mlxhog.optim.updates import Float32


def lion_reference(
    g: Float32, m: Float32, *, beta1: float, beta2: float, grad_scale: float
) -> tuple[Float32, Float32]:
    """Return the direction and the new `m`, rounded as the native ones.

    With s = grad_scale * g the direction is sign(beta1 * m + (1 - beta1) * s), and m is the
    exponential mean of s with decay beta2.
    """
    s: Float32 = float32(grad_scale) * g
    c = float32(beta1) * m + float32(1.0 - beta1) * s
    return np.sign(c), float32(beta2) * m + float32(1.0 - beta2) * s


LION: Final = Direction(("m",), _native.lion_direction, lion_reference)


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """`w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)`, with `m` private.

    Rows that a gradient does not touch keep their mean.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    native: bool = True
    state_segments: tuple[str, ...] = ("m",)
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        rates = {"beta1": self.beta1, "beta2": self.beta2, "grad_scale": step.grad_scale}
        directions = (
            (slot, LION.of(target, slot, grad, rates, native=self.native)) for slot, grad in pairs
        )
        by = SGD(weight_decay=self.weight_decay, native=self.native)
        write(target, directions, by, step, lr=step.lr)


@rule_of.register(optimizers.Lion)
def _(choice: optimizers.Lion, use: Use) -> Lion:
    return Lion(beta1=choice.decay1, beta2=choice.beta2, weight_decay=choice.weight_decay)
