"""The elements that a worker writes for a gradient, by the options of a run.

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
from mlxhog.config.config import TrainConfig
from mlxhog.optim import (
    AdamW,
    Groups,
    Muon,
    Optimizer,
    Sparsified,
    Target,
    gradients,
    updates,
)
from mlxhog.optim.rule import new_state, parameter
from mlxhog.optim.updates import Float32, Grads, Slot

Mask = NDArray[np.bool_]


class WrittenSupport:
    """One worker's steps on parameters of its own; it writes no shared memory.

        support = WrittenSupport(config, layout.slots, params, decay)
        masks = support.of(grads)       # parameter -> bool array of its shape

    A `Rows` gradient gives a mask of the whole parameter, False in every other row. Every step is
    taken at `params`, which do not change.
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
        """Begin without moments and residuals.

        Args:
            config: optimizer, sparsification, clipping; shared moments count as private.
            slots: every parameter by name.
            params: (n,) float32, in the layout of the slots; read only.
            decay: names of the parameters that weight decay applies to.
            hidden: the model's hidden matrices, as `optim.build` takes them.
            groups: its other parameters by group, likewise.
        """
        self._config, self._params = config, params
        self._optimizer: Optimizer = optim.build(config, hidden, groups=groups)
        if isinstance(self._optimizer, AdamW | Muon):
            self._optimizer = replace(self._optimizer, shared=False)
        shapes = {name: slot.shape for name, slot in slots.items()}
        private, places = new_state(
            self._optimizer.state_segments,
            self._optimizer.state_shapes(shapes),
            params.size,
        )
        self._target = Target(
            flat=params.copy(),
            slots=slots,
            locks=None,
            mode=updates.WRITE_MODES["racy"],  # no other process writes them
            private=private,
            places=places,
            shared={},
            decay=decay,
        )
        self._step = 0

    def of(self, grads: Grads) -> dict[str, Mask]:
        """Return the elements that the next step writes for this gradient.

        Raises:
            ShapeError: a gradient does not belong to its parameter.
        """
        self._step += 1
        np.copyto(self._target.flat, self._params)
        if isinstance(self._optimizer, Sparsified):
            self._take_step(self._target, grads)
            return {name: self._mask(name, at) for name, at in self._optimizer.written.items()}
        step = np.zeros_like(self._params)
        self._take_step(replace(self._target, pending=step), grads)
        return {name: parameter(step, self._target.slots[name]) != 0 for name in grads}

    def _take_step(self, target: Target, grads: Grads) -> None:
        scale = gradients.clip_factor(gradients.global_norm(grads), self._config.clip)
        lr = self._config.top_lr
        self._optimizer.step(target, grads, lr=lr, step=self._step, grad_scale=scale)

    def _mask(self, name: str, at: updates.Int32) -> Mask:
        slot = self._target.slots[name]
        mask = np.zeros(slot.size, np.bool_)
        mask[at] = True
        return mask.reshape(slot.shape)
