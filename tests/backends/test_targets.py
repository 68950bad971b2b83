"""Distributions as targets in both backends: their gradient, and a loss that stays the label's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxhog import arena, backends
from mlxhog.backends.backend import Backend
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.optim.gradients import Rows
from tests.models.sample import batch as sample_batch
from tests.models.sample import config, perturbed_params
from tests.tolerances import GRADIENT_ANY_F32, LOSS_F32, assert_close


def bound(name: str, kernels: str, cfg: ModelConfig) -> Backend:
    backend = backends.create(name, threads=1, kernels=kernels, cpu_blas="auto")
    layout = arena.plan(families.param_spec(cfg), max_workers=1, n_tickets=1)
    backend.bind(cfg, layout.slots, layout.n_floats, None)
    params = perturbed_params(cfg, seed=5)
    for parameter, slot in layout.slots.items():
        backend.inbox[slot.offset : slot.offset + slot.size] = params[parameter].ravel()
    backend.refresh()
    return backend


def dense(grad: Any, like: tuple[int, ...]) -> Any:
    if not isinstance(grad, Rows):
        return np.array(grad)
    whole = np.zeros(like)
    np.add.at(whole, grad.index, grad.values)
    return whole


@pytest.mark.parametrize("name", ["torch:cpu", "mlx:cpu"])
@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_the_gradient_of_a_mixture_is_the_mixture_of_gradients_and_the_loss_the_label_s(
    name: str, kernels: str
) -> None:
    cfg = config()
    x, y = sample_batch(cfg, 2, 4, seed=5)
    other = np.where(y == IGNORED, IGNORED, (y + 7) % cfg.vocab_size).astype(np.int32)
    backend, shapes = bound(name, kernels, cfg), families.param_spec(cfg)

    def gradient(labels: Any, targets: Any = None) -> tuple[float, dict[str, Any]]:
        loss, grads = backend.loss_and_grads(Batch(x, labels, 0), targets)
        return loss, {k: dense(grad, shapes[k].shape) for k, grad in grads.items()}

    one_hot = np.eye(cfg.vocab_size, dtype=np.float32)
    targets = 0.3 * one_hot[np.maximum(y, 0)] + 0.7 * one_hot[np.maximum(other, 0)]
    targets[y == IGNORED] = 0
    (loss, of_label), (_, of_other) = gradient(y), gradient(other)
    mixed_loss, mixed = gradient(y, targets)
    assert_close(mixed_loss, loss, LOSS_F32)
    for parameter, grad in mixed.items():
        expected = 0.3 * of_label[parameter] + 0.7 * of_other[parameter]
        assert_close(grad, expected, GRADIENT_ANY_F32, label=parameter)
