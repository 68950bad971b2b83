"""Losses and gradients of several models of one shape as one computation, in MLX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlxhog.arena import Slot
from mlxhog.backends.backend import Float32, Int32
from mlxhog.models import lm
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.ops.kernels import choose


def losses_and_grads(
    model: MADConfig,
    slots: Mapping[str, Slot],
    flats: Float32,
    x: Int32,
    y: Int32,
    *,
    device: str,
) -> tuple[list[float], dict[str, Float32]]:
    """Return the mean loss of each of N models, and the gradients of all.

    Arguments and result as in `batched_torch.losses_and_grads`; `device` is "cpu" or "gpu".
    """
    ops = choose("mlx", "reference", device)

    def loss(one: Mapping[str, mx.array], tokens: mx.array, labels: mx.array) -> Any:
        embedded = lm.embed(model, one, tokens, ops.xp)
        return lm.loss_from_embedding(model, one, embedded, labels, ops=ops)

    def total(params: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        axes = (dict.fromkeys(params, 0), 0, 0)
        losses = mx.vmap(loss, in_axes=axes)(params, mx.array(x), mx.array(y))
        return losses.sum(), losses

    with mx.stream(mx.Device(mx.gpu if device == "gpu" else mx.cpu, 0)):
        stack = mx.array(flats)
        params = {
            name: stack[:, slot.offset : slot.offset + slot.size].reshape(-1, *slot.shape)
            for name, slot in slots.items()
        }
        # The loss of a model depends on its own parameters alone: one gradient of the sum is all.
        (_, losses), grads = mx.value_and_grad(total)(params)
        mx.eval(losses, grads)
    values = np.array(losses)
    return [float(loss) for loss in values], {
        name: np.ascontiguousarray(grad) for name, grad in grads.items()
    }
