"""Stochastic gradient descent, plain and with momentum, in the semantics of torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog import _native
from mlxhog.config import optimizers
from mlxhog.metal.kernels.step_rules import momentum_hp, sgd_hp
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


def sgd_reference(
    w: Float32, g: Float32, *, lr: float, weight_decay: float, grad_scale: float
) -> Float32:
    """Return the step `-lr * (grad_scale * g + weight_decay * w)`, rounded as the native one."""
    d = float32(grad_scale) * g + float32(weight_decay) * w
    return -(float32(lr) * d)


def momentum_reference(
    w: Float32,
    g: Float32,
    m: Float32,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    grad_scale: float,
) -> tuple[Float32, Float32]:
    """Return the step and the new `m = momentum * m + d`, with d as in `sgd_reference`.

    The step is `-lr * m`, or with Nesterov's look-ahead `-lr * (d + momentum * m)`.
    """
    d = float32(grad_scale) * g + float32(weight_decay) * w
    m = float32(momentum) * m + d
    return -(float32(lr) * (d + float32(momentum) * m if nesterov else m)), m


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """`w -= lr * (g + weight_decay * w)`; no state."""

    weight_decay: float = 0.0
    native: bool = True
    state_segments: tuple[str, ...] = ()
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update; a gradient is its own direction, so all of this is writing."""
        with target.writing():
            self._write(target, pairs, step)

    def _write(self, target: Target, pairs: Pairs, step: Step) -> None:
        if target.metal is not None:
            hp = sgd_hp(lr=step.lr, weight_decay=self.weight_decay)
            target.metal.apply(self.metal_rule, pairs, {}, hp, step.grad_scale, target.record)
            return
        for slot, grad in pairs:
            decay = self.weight_decay if slot.name in target.decay else 0.0
            rates = {"lr": step.lr, "weight_decay": decay, "grad_scale": step.grad_scale}
            if self.native:
                how = {**rates, "seed": step.seed}
                target.apply(_native.sgd_step, _native.sgd_rows, slot, grad, (), how)
            else:
                at, g = touched(grad)
                w = parameter(target.flat, slot)
                target.add(slot, at, sgd_reference(w[at], g, **rates))


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
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

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        m_flat = target.private["m"]
        if target.metal is not None:
            hp = momentum_hp(
                lr=step.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
            )
            state = {"m": m_flat}
            target.metal.apply(self.metal_rule, pairs, state, hp, step.grad_scale, target.record)
            return
        for slot, grad in pairs:
            rates = {
                "lr": step.lr,
                "momentum": self.momentum,
                "weight_decay": self.weight_decay if slot.name in target.decay else 0.0,
                "grad_scale": step.grad_scale,
            }
            if self.native:
                how = {**rates, "nesterov": self.nesterov, "seed": step.seed}
                steps = (_native.momentum_step, _native.momentum_rows)
                target.apply(*steps, slot, grad, (m_flat,), how)
            else:
                at, g = touched(grad)
                w, m = parameter(target.flat, slot), parameter(m_flat, slot)
                delta, m[at] = momentum_reference(w[at], g, m[at], nesterov=self.nesterov, **rates)
                target.add(slot, at, delta)


@rule_of.register(optimizers.SGD)
def _(choice: optimizers.SGD, use: Use) -> SGD:
    return SGD(weight_decay=choice.weight_decay)


@rule_of.register(optimizers.Momentum)
def _(choice: optimizers.Momentum, use: Use) -> Momentum:
    return Momentum(momentum=choice.momentum, weight_decay=choice.weight_decay)
