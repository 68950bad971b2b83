"""Our optimizers take PyTorch's steps (torch.optim.SGD, AdamW, SparseAdam)."""

from collections.abc import Callable

import numpy as np
import torch

from mlxhog.optim import SGD, AdamW, Momentum, gradients
from mlxhog.optim.gradients import Rows
from tests.optim.small import BIAS, EMBEDDING, MATRIX, initial, parameter, target
from tests.pairs import each_of

STEPS = 25
LR = 0.02
DECAY = 0.1
# float32 steps of order LR, summed over STEPS: torch multiplies by 1 - lr * decay where we subtract
# the product, and divides by bias corrections in another order; each differs in the last bit.
RTOL, ATOL = 2e-5, 2e-6

TorchOptimizer = Callable[[list[dict[str, object]]], torch.optim.Optimizer]

PAIRS = {
    "sgd": (SGD(weight_decay=DECAY), lambda groups: torch.optim.SGD(groups, lr=LR)),
    "momentum": (
        Momentum(momentum=0.8, weight_decay=DECAY),
        lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.8),
    ),
    "nesterov": (
        Momentum(momentum=0.8, nesterov=True, weight_decay=DECAY),
        lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.8, nesterov=True),
    ),
    "adamw": (
        AdamW(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=DECAY),
        lambda groups: torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8),
    ),
    "adamw, shared second moment": (
        AdamW(weight_decay=DECAY, shared=True),
        lambda groups: torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8),
    ),
}


@each_of("clipped", [False, True], ids=["unclipped", "clipped"])
@each_of("name", PAIRS)
def test_dense_steps_with_clipping_and_decay_groups_equal_torchs(name, clipped):
    ours, make_theirs = PAIRS[name]
    flat = initial()
    to = target(ours, flat, "matrix")
    w, b = (torch.tensor(parameter(flat, slot).copy()) for slot in (MATRIX, BIAS))
    theirs = make_theirs(
        [{"params": [w], "weight_decay": DECAY}, {"params": [b], "weight_decay": 0.0}]
    )
    rng = np.random.default_rng(1)
    for step in range(1, STEPS + 1):
        grads = {
            slot.name: rng.standard_normal(slot.shape, dtype=np.float32) for slot in (MATRIX, BIAS)
        }
        max_norm = 0.5 if clipped else 0.0
        scale = gradients.clip_factor(gradients.global_norm(grads), max_norm)
        ours.step(to, grads, lr=LR, step=step, seed=step, grad_scale=scale)
        w.grad, b.grad = (torch.tensor(grads[slot.name]) for slot in (MATRIX, BIAS))
        if clipped:
            torch.nn.utils.clip_grad_norm_([w, b], max_norm)
        theirs.step()
    np.testing.assert_allclose(parameter(flat, MATRIX), w.numpy(), rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(parameter(flat, BIAS), b.numpy(), rtol=RTOL, atol=ATOL)


def test_rows_equal_torchs_sparse_adam_and_absent_rows_stay():
    ours = AdamW(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0)
    flat = initial()
    to = target(ours, flat)
    table = torch.nn.Parameter(torch.tensor(parameter(flat, EMBEDDING).copy()))
    theirs = torch.optim.SparseAdam([table], lr=LR, betas=(0.9, 0.95), eps=1e-8)
    rng = np.random.default_rng(1)
    before = parameter(flat, EMBEDDING).copy()
    for step in range(1, STEPS + 1):
        index = rng.integers(0, 9, 6).astype(np.int32)  # rows 9 and 10 never; duplicates likely
        values = rng.standard_normal((6, 5), dtype=np.float32)
        ours.step(to, {"embedding": Rows(index, values)}, lr=LR, step=step)
        table.grad = torch.sparse_coo_tensor(
            torch.tensor(index[None, :]),
            torch.tensor(values),
            EMBEDDING.shape,
            check_invariants=True,
        )
        theirs.step()  # torch
    actual = parameter(flat, EMBEDDING)
    np.testing.assert_allclose(actual, table.detach().numpy(), rtol=RTOL, atol=ATOL)
    np.testing.assert_array_equal(actual[9:], before[9:])
