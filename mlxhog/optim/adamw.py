"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np

from mlxhog import _native
from mlxhog.config import optimizers
from mlxhog.config.optimizer import Adaptive
from mlxhog.metal.kernels.step_rules import adam_hp
from mlxhog.optim import metal_steps
from mlxhog.optim.rule import (
    Optimizer,
    Pairs,
    Step,
    Target,
    Use,
    float32,
    parameter,
    rule_of,
    touched,
)
from mlxhog.optim.updates import Float32


def adamw_reference(
    w: Float32,
    g: Float32,
    m: Float32,
    v: Float32,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias1: float,
    bias2: float,
    grad_scale: float,
) -> tuple[Float32, Float32, Float32]:
    """Return the step and the new `m`, `v`, rounded as the native step.

    With s = grad_scale * g: m and v are the exponential means of s and s^2, and the step is
    -lr * (weight_decay * w + (m / bias1) / (sqrt(v / bias2) + eps)).
    """
    s: Float32 = float32(grad_scale) * g
    m = float32(beta1) * m + float32(1.0 - beta1) * s
    squared: Float32 = s * s
    v = float32(beta2) * v + float32(1.0 - beta2) * squared
    denominator: Float32 = np.sqrt(v) * float32(1.0 / math.sqrt(bias2)) + float32(eps)
    delta = -(float32(lr * weight_decay) * w + float32(lr / bias1) * (m / denominator))
    return delta, m, v


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW, with private moments or one pair for all workers.

    Bias correction counts the updates of the moments, private or shared. Rows that a
    gradient does not touch keep both moments, as in torch.optim.SparseAdam; a dense gradient decays
    all of them.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    shared: bool = False
    native: bool = True

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Private state: "m" and "v", unless they are shared."""
        return () if self.shared else ("m", "v")

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: "m" and "v", if they are."""
        return ("m", "v") if self.shared else ()

    @property
    def metal_rule(self) -> metal_steps.Rule:
        """The kernels of shared moments, or of private ones."""
        return metal_steps.ADAM_SHARED if self.shared else metal_steps.ADAM

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        moments = target.moments(shared=self.shared)
        m_flat, v_flat = moments["m"], moments["v"]
        count = step.shared_count if self.shared else step.count
        common = {
            "lr": step.lr,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "bias1": 1.0 - self.beta1**count,
            "bias2": 1.0 - self.beta2**count,
        }
        if target.metal is not None:
            hp = adam_hp(**common, weight_decay=self.weight_decay)
            target.metal.apply(self.metal_rule, pairs, moments, hp, step.grad_scale, target.record)
            return
        for slot, grad in pairs:
            decay = self.weight_decay if slot.name in target.decay else 0.0
            rates = {**common, "weight_decay": decay, "grad_scale": step.grad_scale}
            if self.native:
                how = {**rates, "seed": step.seed, "shared": self.shared}
                state = (m_flat, v_flat)
                target.apply(_native.adamw_step, _native.adamw_rows, slot, grad, state, how)
            else:
                at, g = touched(grad)
                w, m, v = (parameter(flat, slot) for flat in (target.flat, m_flat, v_flat))
                delta, m[at], v[at] = adamw_reference(w[at], g, m[at], v[at], **rates)
                target.add(slot, at, delta)


@dataclass(frozen=True, kw_only=True)
class BesideAdamW(Optimizer):
    """A rule for the matrices named in `hidden`, beside AdamW for all others.

    Attributes:
        hidden: names of the matrices.
        beta1: decay of first moments, of both rules.
        beta2: decay of second moments.
        eps: added to roots of second moments.
        weight_decay: decoupled, of both rules.
        native: False takes the NumPy references, for one worker only.
    """

    hidden: frozenset[str]
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    native: bool = True

    @cached_property
    def adamw(self) -> AdamW:
        """The rule of other parameters; its moments are shared if those of `hidden` are."""
        return AdamW(
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            shared=bool(self.shared_segments),
            native=self.native,
        )


@rule_of.register(optimizers.AdamW)
def _(choice: optimizers.AdamW, use: Use) -> AdamW:
    return AdamW(**moments_of(choice), shared=use.shared)


class Moments(TypedDict):
    """Numbers of first and second moments, and weight decay, as arguments of rules."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def moments_of(choice: Adaptive) -> Moments:
    """Return these numbers of a choice."""
    return {
        "beta1": choice.decay1,
        "beta2": choice.beta2,
        "eps": choice.eps,
        "weight_decay": choice.weight_decay,
    }
