"""A few steps of each optimizer on one batch: the native ones in float32, formulas in float64.

Two comparisons use them. A side's steps must equal the formula's on the side's own gradients, to a
few units in the last place of each parameter (`Formula`): this tests the optimizer alone. And after
steps of SGD, momentum and AdamW the parameters must equal the reference's within float32's error
(`tolerances.py`): this tests gradients, optimizer and the parameters' way back into the model.

A plugin's optimizer gets the first comparison only: how it amplifies errors of gradients is
unknown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mlxhog import arena, optim
from mlxhog.conformance.subject import RULES, Array
from mlxhog.errors import ConfigError, message_of
from mlxhog.models.families import ModelConfig, rate_groups, trainable_spec
from mlxhog.optim import SGD, AdamW, Momentum, OptimizerComponent
from mlxhog.optim.component import GROUPS, factors
from mlxhog.optim.rule import parameter

LR = dict(zip(RULES, (2e-3, 1e-3, 1e-3), strict=True))
"""Learning rates whose steps exceed rounding, without chaos."""
MOMENTUM = 0.9
WEIGHT_DECAY = 0.1
BETA1, BETA2 = 0.9, 0.95
EPS = 1e-2
"""AdamW's. With the usual 1e-8 an entry whose gradient is rounding noise moves by a whole lr in a
random direction, so that no two programs would agree."""

CHOICES: Mapping[str, OptimizerComponent] = {
    choice.name: choice
    for choice in (
        SGD(weight_decay=WEIGHT_DECAY),
        Momentum(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        AdamW(
            beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY,
            embedding_lr=0.5, scalar_lr=0.75,
        ),
    )
}  # fmt: skip
"""AdamW has other learning rates for some groups, none above `LR`."""

AMPLIFICATION = {
    SGD.name: LR[SGD.name],
    Momentum.name: LR[Momentum.name] / (1.0 - MOMENTUM),
    AdamW.name: 2.0 * LR[AdamW.name] / EPS,
}
"""Largest error of a step per unit of error in every gradient. AdamW divides by at least eps, for
the error of its numerator and for that of its denominator."""

Gradient = Callable[[Mapping[str, Array], int], Mapping[str, Array]]
"""From parameters by name, and the number of the step from 1 on, to gradients by name."""
After = tuple[str, Mapping[str, Array], Mapping[str, Array]]
"""An optimizer, parameters after its last step, and their differences from the formula."""


class Formula:
    """An optimizer in float64, on given gradients.

    It uses the optimizer's method `reference(w, g, *state, lr, decay, count)`, which returns the
    step of one parameter and its new state in the order of `state_segments`; `decay` says whether
    weight decay applies, `count` is the step's number, from 1 on. `SGD`, `Momentum` and `AdamW`
    have a formula here. Without `reference` it calls `update` in float64.

    Deviations of a parameter are measured in units of its rounding: the spacing of float32 at its
    largest value so far, plus the spacing at the largest step of its tensor.
    """

    def __init__(
        self, cfg: ModelConfig, choice: OptimizerComponent, params: Mapping[str, Array]
    ) -> None:
        """Start from float32 parameters by name, all of a model or some."""
        groups, fitted = rate_groups(cfg), choice.fitted(hidden=True)
        lacks = [GROUPS[one] for one in GROUPS if not groups[one] and hasattr(fitted, GROUPS[one])]
        none: dict[str, Any] = dict.fromkeys(lacks, 1.0)  # as beside an adapter
        rule = fitted = replace(fitted, **none)
        self._factors = factors(fitted, groups)
        self.optimizer: Any = optim.GroupedRates(rule, self._factors) if self._factors else rule
        self.lr = LR[choice.name] if choice.name in LR else fitted.default_lr(cfg.hidden_size)
        own = partial(_reference, choice.name) if choice.name in LR else None
        self._reference = own or getattr(rule, "reference", None)
        self._target, self.now = _new_target(np.float64, cfg, params, self.optimizer)
        self._reach = {name: np.abs(value) for name, value in self.now.items()}
        self._pace = dict.fromkeys(self.now, 0.0)
        self._step = 0

    def step(self, grads: Mapping[str, Array]) -> None:
        """Take the next step.

        Raises:
            ConfigError: the optimizer of a plugin cannot compute in float64.
        """
        self._step += 1
        before = {name: value.copy() for name, value in self.now.items()}
        slots = self._target.slots
        pairs = [(slots[name], grad.astype(np.float64)) for name, grad in grads.items()]
        try:
            self._update(pairs)
        except Exception as error:
            raise ConfigError(
                f"{type(self.optimizer).__name__} fails in float64: {message_of(error)}; give it "
                "a method `reference`, see docs/extending.md"
            ) from error
        for name, value in self.now.items():
            np.maximum(self._reach[name], np.abs(value), out=self._reach[name])
            delta = np.abs(value - before[name])
            self._pace[name] = max(self._pace[name], float(delta.max(initial=0.0)))

    def _update(self, pairs: Any) -> None:
        target, lr, count = self._target, self.lr, self._step
        if self._reference is None:
            step = optim.UpdateStep(lr=lr, count=count, shared_count=count, seed=0, grad_scale=1.0)
            self.optimizer.update(target, pairs, step)
            return
        for slot, grad in pairs:
            w = self.now[slot.name]
            state = [target.state(name, slot) for name in self.optimizer.state_segments]
            of_group = lr * self._factors.get(slot.name, 1.0)
            rates = {"lr": of_group, "decay": slot.name in target.decay, "count": count}
            delta, *after = self._reference(w, grad, *state, **rates)
            w += delta
            for part, value in zip(state, after, strict=True):
                part[...] = value

    def deviation(self, name: str, value: Array) -> Array:
        """Measure the deviation of a float32 parameter from the formula's.

        Returns:
            (4,): the largest deviation per step, in units of its rounding; its index in the flat
            parameter; the value there; the formula's value there.
        """
        reach = np.spacing(self._reach[name].astype(np.float32)).astype(np.float64)
        units = self._step * (reach + np.spacing(np.float32(self._pace[name])))
        off = (np.abs(value - self.now[name]) / units).reshape(-1)
        at = int(off.argmax())
        return np.array([off[at], at, value.reshape(-1)[at], self.now[name].reshape(-1)[at]])


def _rounded(*rates: float) -> Array:
    return np.array(rates, np.float32)


def _reference(
    rule: str, w: Array, g: Array, *state: Array, lr: float, decay: bool, count: int
) -> tuple[Array, ...]:
    """The step of `RULES`, with rates rounded as those of native steps are."""
    weight_decay = WEIGHT_DECAY if decay else 0.0
    if rule == AdamW.name:
        m, v = state
        bias1, bias2 = 1.0 - BETA1**count, 1.0 - BETA2**count
        decays = (BETA1, 1.0 - BETA1, BETA2, 1.0 - BETA2)
        b1, c1, b2, c2, root = _rounded(*decays, bias2**-0.5)
        step, shrink, eps = _rounded(lr / bias1, lr * weight_decay, EPS)
        m, v = b1 * m + c1 * g, b2 * v + c2 * (g * g)
        return -(shrink * w + step * (m / (np.sqrt(v) * root + eps))), m, v
    size, decayed, momentum = _rounded(lr, weight_decay, MOMENTUM)
    d = g + decayed * w
    if rule == SGD.name:
        return (-size * d,)
    m = momentum * state[0] + d
    return -size * m, m


class _Float64Target(optim.UpdateTarget):
    """A float64 target that writes directions by a formula in place of the native kernel."""

    def native(
        self, kernel: Any, slot: Any, grad: Any, form: Any, step: Any, out: Any = None
    ) -> None:
        if kernel.state:
            raise TypeError(f"directions of {kernel.name} are in float32 alone")
        lr, scale, coupled, decoupled = _rounded(*form.write)
        w = parameter(self.flat, slot)
        w -= lr * (scale * grad + coupled * w) + decoupled * w


def _new_target(
    dtype: Any, cfg: ModelConfig, params: Mapping[str, Array], optimizer: optim.Optimizer
) -> tuple[optim.UpdateTarget, dict[str, Array]]:
    """Return a target without an arena, and its view of each parameter."""
    every = {name: one for name, one in trainable_spec(cfg).items() if name in params}
    spec = {name: one for name, one in every.items() if one.kind != "table"}
    layout = arena.plan(spec, max_workers=1, n_tickets=1)
    flat = np.zeros(layout.n_floats, dtype)
    views = {name: parameter(flat, slot) for name, slot in layout.slots.items()}
    for name, view in views.items():
        view[...] = params[name]
    decay = frozenset(name for name, one in spec.items() if one.decay)
    kind = _Float64Target if dtype is np.float64 else optim.UpdateTarget
    return kind.alone(optimizer, flat, layout.slots, decay), views


def native_steps(
    cfg: ModelConfig,
    params: Mapping[str, Array],
    gradient: Gradient,
    steps: int,
    plugins: Sequence[OptimizerComponent] = (),
) -> Iterator[After]:
    """Take the steps of `mlxhog.optim` and of `plugins` in float32.

    Every second step gets twice the gradient with `grad_scale` 1/2, and goes to `pending` in place
    of the parameters. Neither may change the result.
    """
    for choice in (*CHOICES.values(), *plugins):
        formula = Formula(cfg, choice, params)
        optimizer, lr = formula.optimizer, formula.lr
        target, views = _new_target(np.float32, cfg, params, optimizer)
        for step in range(1, steps + 1):
            grads = {name: np.ascontiguousarray(g) for name, g in gradient(views, step).items()}
            formula.step(grads)
            if step % 2:
                optimizer.step(target, grads, lr=lr, step=step)
                continue
            before, pending = target.flat.copy(), np.zeros_like(target.flat)
            grads = {name: 2 * grad for name, grad in grads.items()}
            other = replace(target, pending=pending)
            optimizer.step(other, grads, lr=lr, step=step, grad_scale=0.5)
            np.add(before, pending, out=target.flat)
        differences = {name: formula.deviation(name, view) for name, view in views.items()}
        yield choice.name, views if choice.name in LR else {}, differences


def float64_steps(
    cfg: ModelConfig, params: Mapping[str, Array], gradient: Gradient, steps: int
) -> Iterator[After]:
    """Take the steps of `RULES` by their formulas in float64; without deviations."""
    for rule, choice in CHOICES.items():
        formula = Formula(cfg, choice, params)
        for step in range(1, steps + 1):
            formula.step(gradient(formula.now, step))
        yield rule, formula.now, {}
