"""Losses and gradients of several models of one shape as one computation, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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

    Args:
        model: the shape they share.
        slots: where a parameter lies in a model's floats.
        flats: (N, n_floats) float32, a model in each row.
        x: tokens, (N, B, S).
        y: labels, likewise; -100 is ignored.
        device: "cpu" or "mps".

    Returns:
        N losses in nats, and per parameter (N, *shape) float32, the embedding's dense.
    """
    stack = torch.from_numpy(flats).to(device)
    params = {
        name: stack[:, slot.offset : slot.offset + slot.size]
        .reshape(-1, *slot.shape)
        .requires_grad_()
        for name, slot in slots.items()
    }

    ops = choose("torch", "reference", device)

    def loss(one: Mapping[str, torch.Tensor], tokens: torch.Tensor, labels: torch.Tensor) -> Any:
        embedded = lm.embed(model, one, tokens, ops.xp)
        return lm.loss_from_embedding(model, one, embedded, labels, ops=ops)

    tokens, labels = (torch.from_numpy(part).to(device).long() for part in (x, y))
    with sdpa_kernel(SDPBackend.MATH):  # the others would be called model by model
        losses = torch.func.vmap(loss)(params, tokens, labels)
    # The loss of a model depends on its own parameters alone: one gradient of the sum is all N.
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    arrays = {
        name: np.ascontiguousarray(grad.cpu().numpy())
        for name, grad in zip(params, grads, strict=True)
    }
    return losses.tolist(), arrays
