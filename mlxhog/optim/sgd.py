"""Stochastic gradient descent, plain and with momentum, in the semantics of torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog import _native
from mlxhog.metal.kernels.step_rules import momentum_hp, sgd_hp
from mlxhog.optim import metal_steps
from mlxhog.optim.target import Target, float32, parameter, touched
from mlxhog.optim.updates import Float32, Grads


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
class SGD:
    """`w -= lr * (g + weight_decay * w)`; no state."""

    weight_decay: float = 0.0
    native: bool = True
    state_segments: tuple[str, ...] = ()
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def step(
        self,
        target: Target,
        grads: Grads,
        *,
        lr: float,
        step: int,
        seed: int = 0,
        grad_scale: float = 1.0,
        shared_step: int | None = None,
    ) -> None:
        """Apply one update; see `Optimizer.step`."""
        pairs = target.pairs(grads)
        if target.metal is not None:
            hp = sgd_hp(lr=lr, weight_decay=self.weight_decay)
            target.metal.apply(self.metal_rule, pairs, {}, hp, grad_scale, target.record)
            return
        for slot, grad in pairs:
            decay = self.weight_decay if slot.name in target.decay else 0.0
            rates = {"lr": lr, "weight_decay": decay, "grad_scale": grad_scale}
            if self.native:
                target.apply(
                    _native.sgd_step, _native.sgd_rows, slot, grad, (), {**rates, "seed": seed}
                )
            else:
                at, g = touched(grad)
                w = parameter(target.flat, slot)
                target.add(slot, at, sgd_reference(w[at], g, **rates))


@dataclass(frozen=True, kw_only=True)
class Momentum:
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

    def step(
        self,
        target: Target,
        grads: Grads,
        *,
        lr: float,
        step: int,
        seed: int = 0,
        grad_scale: float = 1.0,
        shared_step: int | None = None,
    ) -> None:
        """Apply one update; see `Optimizer.step`."""
        m_flat = target.private["m"]
        pairs = target.pairs(grads)
        if target.metal is not None:
            hp = momentum_hp(
                lr=lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
            )
            target.metal.apply(self.metal_rule, pairs, {"m": m_flat}, hp, grad_scale, target.record)
            return
        for slot, grad in pairs:
            decay = self.weight_decay if slot.name in target.decay else 0.0
            if self.native:
                rates = {
                    "lr": lr,
                    "momentum": self.momentum,
                    "nesterov": self.nesterov,
                    "weight_decay": decay,
                    "grad_scale": grad_scale,
                    "seed": seed,
                }
                state = (m_flat,)
                target.apply(_native.momentum_step, _native.momentum_rows, slot, grad, state, rates)
            else:
                at, g = touched(grad)
                w, m = parameter(target.flat, slot), parameter(m_flat, slot)
                delta, m[at] = momentum_reference(
                    w[at],
                    g,
                    m[at],
                    lr=lr,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    weight_decay=decay,
                    grad_scale=grad_scale,
                )
                target.add(slot, at, delta)
