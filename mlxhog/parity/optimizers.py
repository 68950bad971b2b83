"""A few steps of SGD, momentum and AdamW on one batch: ours in float32, their formulas in float64.

Two things are asked of them. A side's steps have to be what the formula makes of the side's own
gradients, to a few units in the last place of each parameter (`Formula`): that is the optimizer
alone. And where they lead has to be where the reference's steps lead, as near as float32 can know
(`tolerances.py`): that is gradients, optimizer and the parameters' way back into the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mlxhog import arena, optim
from mlxhog.config.optimizers import SGD, AdamW, Momentum, OptimizerChoice
from mlxhog.models.families import ModelConfig, param_spec
from mlxhog.optim.adamw import adamw_reference
from mlxhog.optim.sgd import momentum_reference, sgd_reference
from mlxhog.optim.updates import WRITE_MODES
from mlxhog.parity.subject import RULES, Array

LR = dict(zip(RULES, (2e-3, 1e-3, 1e-3), strict=True))
"""Steps far above the rounding of a parameter, and too short for chaos."""
MOMENTUM = 0.9
WEIGHT_DECAY = 0.1
BETA1, BETA2 = 0.9, 0.95
EPS = 1e-2
"""AdamW's. With the usual 1e-8 an entry whose gradient is rounding noise moves by a whole lr, in a
direction that noise chooses, and no two programs would agree on it."""

CHOICES: Mapping[str, OptimizerChoice] = {
    choice.name: choice
    for choice in (
        SGD(weight_decay=WEIGHT_DECAY),
        Momentum(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        AdamW(beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY),
    )
}

AMPLIFICATION = {
    SGD.name: LR[SGD.name],
    Momentum.name: LR[Momentum.name] / (1.0 - MOMENTUM),
    AdamW.name: 2.0 * LR[AdamW.name] / EPS,
}
"""How much further a step may lead at most, per unit of error in every gradient: AdamW divides by
no less than eps, once in its numerator's error and once in its denominator's."""

Gradient = Callable[[Mapping[str, Array], int], Mapping[str, Array]]
"""From parameters by name, and the number of the step from 1 on, to their gradients."""
After = tuple[str, Mapping[str, Array], Mapping[str, Array]]
"""A rule, every parameter after the last of its steps, and how far those are from the formula."""


class Formula:
    """One rule in float64, following the gradients it is shown.

    A parameter is measured in units of its own rounding: the spacing of float32 at the largest
    value it had on its way, and at the largest step of its tensor.
    """

    def __init__(self, cfg: ModelConfig, rule: str, params: Mapping[str, Array]) -> None:
        """Start from float32 parameters by name."""
        self._rule, self._spec, self._step = rule, param_spec(cfg), 0
        self.now = {name: value.astype(np.float64) for name, value in params.items()}
        self._m = {name: np.zeros_like(value) for name, value in self.now.items()}
        self._v = {name: np.zeros_like(value) for name, value in self.now.items()}
        self._reach = {name: np.abs(value) for name, value in self.now.items()}
        self._pace = dict.fromkeys(self.now, 0.0)

    def step(self, grads: Mapping[str, Array]) -> None:
        """Take the next step."""
        self._step += 1
        for name, grad in grads.items():
            delta, self._m[name], self._v[name] = _delta(
                self._rule,
                self.now[name],
                grad.astype(np.float64),
                self._m[name],
                self._v[name],
                self._step,
                self._spec[name].decay,
            )
            self.now[name] = self.now[name] + delta
            np.maximum(self._reach[name], np.abs(self.now[name]), out=self._reach[name])
            self._pace[name] = max(self._pace[name], float(np.abs(delta).max(initial=0.0)))

    def apart(self, name: str, value: Array) -> Array:
        """Measure how far a float32 parameter is from the formula's.

        Returns:
            (4,): the largest difference per step, in units of its rounding; its place in the flat
            parameter; the value there; the formula's there.
        """
        reach = np.spacing(self._reach[name].astype(np.float32)).astype(np.float64)
        units = self._step * (reach + np.spacing(np.float32(self._pace[name])))
        off = (np.abs(value - self.now[name]) / units).reshape(-1)
        at = int(off.argmax())
        return np.array([off[at], at, value.reshape(-1)[at], self.now[name].reshape(-1)[at]])


def ours(
    cfg: ModelConfig, params: Mapping[str, Array], gradient: Gradient, steps: int
) -> Iterator[After]:
    """Take the native steps of `mlxhog.optim`, in float32."""
    spec = param_spec(cfg)
    layout = arena.plan(spec, max_workers=1, n_tickets=1)
    decay = frozenset(name for name, one in spec.items() if one.decay)
    for rule in RULES:
        optimizer = optim.rule_of(CHOICES[rule], optim.Use())
        flat = np.zeros(layout.n_floats, np.float32)
        views = {
            name: flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            for name, slot in layout.slots.items()
        }
        for name, view in views.items():
            view[...] = params[name]
        private = {name: np.zeros_like(flat) for name in optimizer.state_segments}
        target = optim.Target(flat, layout.slots, None, WRITE_MODES["racy"], private, {}, decay)
        formula = Formula(cfg, rule, params)
        for step in range(1, steps + 1):
            grads = {name: np.ascontiguousarray(g) for name, g in gradient(views, step).items()}
            optimizer.step(target, grads, lr=LR[rule], step=step)
            formula.step(grads)
        yield rule, views, {name: formula.apart(name, view) for name, view in views.items()}


def reference(
    cfg: ModelConfig, params: Mapping[str, Array], gradient: Gradient, steps: int
) -> Iterator[After]:
    """Take the same steps by their formulas, in float64; how far they are from it is empty."""
    for rule in RULES:
        formula = Formula(cfg, rule, params)
        for step in range(1, steps + 1):
            formula.step(gradient(formula.now, step))
        yield rule, formula.now, {}


def _delta(
    rule: str, w: Array, g: Array, m: Array, v: Array, step: int, decays: bool
) -> tuple[Array, Array, Array]:
    """Return the step of one parameter, and both moments after it."""
    rates = {"lr": LR[rule], "weight_decay": WEIGHT_DECAY if decays else 0.0, "grad_scale": 1.0}
    if rule == SGD.name:
        return sgd_reference(w, g, **rates), m, v
    if rule == Momentum.name:
        delta, m = momentum_reference(w, g, m, momentum=MOMENTUM, nesterov=False, **rates)
        return delta, m, v
    return adamw_reference(
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
