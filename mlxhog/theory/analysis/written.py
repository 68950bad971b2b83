"""The steps that a worker's optimizer would write for gradients, by the options of a run.

The theory's Omega, rho, Delta are about updates of the shared parameters: the step of the
optimizer, or a selection of it. With error feedback the selection depends on the rest of earlier
steps, so gradients come one after another, in the order of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlxhog import optim
from mlxhog.arena.layout import Slot
from mlxhog.config.config import TrainConfig
from mlxhog.optim import (
    Groups,
    Optimizer,
    OptimizerChoice,
    Sparsified,
    Target,
    WithTables,
    gradients,
)
from mlxhog.optim.choice import Sharing
from mlxhog.optim.rule import parameter
from mlxhog.optim.updates import Float32, Grads


def with_own_moments(optimizer: OptimizerChoice) -> OptimizerChoice:
    """Return an optimizer whose moments no other worker has."""
    if isinstance(optimizer, Sharing):
        return replace(optimizer, moments="private")
    return optimizer


class WrittenSteps:
    """One worker's steps on parameters of its own; it writes no shared memory.

        steps = WrittenSteps(config, layout.slots, params, decay)
        masks = steps.masks(grads)      # parameter -> bool array of its shape
        step = steps.step(grads)        # (n,) float32, in the layout of the slots

    Every step is taken at `params`, which do not change by it. It begins without moments and
    residuals.

    Args:
        config: optimizer, sparsification, clipping; shared moments count as private.
        slots: every parameter by name.
        params: (n,) float32, in the layout of the slots; read only.
        decay: names of the parameters that weight decay applies to.
        hidden: the model's hidden matrices, as `optim.build` takes them.
        groups: its other parameters by group, likewise.
    """

    def __init__(
        self,
        config: TrainConfig,
        slots: Mapping[str, Slot],
        params: Float32,
        decay: frozenset[str],
        hidden: frozenset[str] = frozenset(),
        groups: Groups | None = None,
    ) -> None:
        config = replace(config, optimizer=with_own_moments(optim.chosen(config)))
        self._config, self._params, self._step = config, params, 0
        self._optimizer: Optimizer = optim.build(config, hidden, groups=groups)
        rule = self._optimizer
        self._rule = rule.rule if isinstance(rule, WithTables) else rule
        self._target = Target.alone(rule, params.copy(), slots, decay)

    def masks(self, grads: Grads) -> dict[str, NDArray[np.bool_]]:
        """Return the elements that the next step writes for this gradient.

        Raises:
            ShapeError: a gradient does not belong to its parameter.
        """
        step, slots = self.step(grads), self._target.slots
        if not isinstance(self._rule, Sparsified):
            return {name: parameter(step, slots[name]) != 0 for name in grads}
        masks = {}
        for name, at in self._rule.written.items():
            mask = np.zeros(slots[name].size, np.bool_)
            mask[at] = True
            masks[name] = mask.reshape(slots[name].shape)
        return masks

    def step(self, grads: Grads) -> Float32:
        """Return the next step for this gradient, to be added to the parameters."""
        self._step += 1
        np.copyto(self._target.flat, self._params)
        target, step = self._target, np.zeros_like(self._params)
        if not isinstance(self._rule, Sparsified):
            target = replace(target, pending=step)
        norm = gradients.global_norm(gradients.without_tables(grads, target.slots))
        scale = gradients.clip_factor(norm, self._config.clip)
        lr = self._config.top_lr
        self._optimizer.step(target, grads, lr=lr, step=self._step, grad_scale=scale)
        return step if target is not self._target else self._target.flat - self._params
