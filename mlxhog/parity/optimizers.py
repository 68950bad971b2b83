"""A few steps of each optimizer on one batch: ours in float32, their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mlxhog import arena, optim
from mlxhog.models.families import ModelConfig, param_spec
from mlxhog.optim.adamw import adamw_reference
from mlxhog.optim.sgd import momentum_reference, sgd_reference
from mlxhog.parity.subject import RULES, Array
from mlxhog.updates import WRITE_MODES

LR = {"sgd": 2e-3, "momentum": 1e-3, "adamw": 1e-3}
"""Steps far above the rounding of a parameter, and too short for chaos."""
MOMENTUM = 0.9
WEIGHT_DECAY = 0.1
BETA1, BETA2 = 0.9, 0.95
EPS = 1e-2
"""AdamW's. With the usual 1e-8 an entry whose gradient is rounding noise moves by a whole lr, in a
direction that noise chooses, and no two programs would agree on it."""

Gradient = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From parameters by name to their gradients."""


def ours(
    cfg: ModelConfig, params: Mapping[str, Array], gradient: Gradient, steps: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Take the native steps of `mlxhog.optim`, in float32.

    Yields:
        The rule, and every parameter after the last of its steps.
    """
    spec = param_spec(cfg)
    layout = arena.plan(spec, max_workers=1, n_tickets=1)
    decay = frozenset(name for name, one in spec.items() if one.decay)
    made: dict[str, optim.Optimizer] = {
        "sgd": optim.SGD(weight_decay=WEIGHT_DECAY),
        "momentum": optim.Momentum(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        "adamw": optim.AdamW(beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY),
    }
    for rule in RULES:
        flat = np.zeros(layout.n_floats, np.float32)
        views = {
            name: flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            for name, slot in layout.slots.items()
        }
        for name, view in views.items():
            view[...] = params[name]
        private = {name: np.zeros_like(flat) for name in made[rule].state_segments}
        target = optim.Target(flat, layout.slots, None, WRITE_MODES["racy"], private, {}, decay)
        for step in range(1, steps + 1):
            grads = {name: np.ascontiguousarray(g) for name, g in gradient(views).items()}
            made[rule].step(target, grads, lr=LR[rule], step=step)
        yield rule, views


def reference(
    cfg: ModelConfig, params: Mapping[str, Array], gradient: Gradient, steps: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Take the same steps by their formulas, in float64; yields as `ours`."""
    spec = param_spec(cfg)
    for rule in RULES:
        now = {name: value.astype(np.float64) for name, value in params.items()}
        m = {name: np.zeros_like(value) for name, value in now.items()}
        v = {name: np.zeros_like(value) for name, value in now.items()}
        for step in range(1, steps + 1):
            for name, grad in gradient(now).items():
                now[name], m[name], v[name] = _step(
                    rule, now[name], grad, m[name], v[name], step, spec[name].decay
                )
        yield rule, now


def _step(
    rule: str, w: Array, g: Array, m: Array, v: Array, step: int, decays: bool
) -> tuple[Array, Array, Array]:
    rates = {"lr": LR[rule], "weight_decay": WEIGHT_DECAY if decays else 0.0, "grad_scale": 1.0}
    if rule == "sgd":
        return w + sgd_reference(w, g, **rates), m, v
    if rule == "momentum":
        delta, m = momentum_reference(w, g, m, momentum=MOMENTUM, nesterov=False, **rates)
        return w + delta, m, v
    delta, m, v = adamw_reference(
        w,
        g,
        m,
        v,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPS,
        bias1=1.0 - BETA1**step,
        bias2=1.0 - BETA2**step,
        **rates,
    )
    return w + delta, m, v
