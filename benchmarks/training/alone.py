"""A training of a language model by one worker in this process: no arena, no worker processes.

It depends on nothing but its options, so several may run side by side, and nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from training.recording import held_out_bits, model_file

from mlxhog import TrainConfig, backends, optim
from mlxhog.models import families
from mlxhog.optim import Target, gradients, updates
from mlxhog.training.plan import make_plan

ALONE: Mapping[str, Any] = {
    "strategy": "serial", "workers": "torch:cpu", "threads": 1, "tokenizer": "bytes",
}  # fmt: skip
"""The options that say so; bytes if no other tokenizer is named."""

WORST_BITS = 8.0
"""What no knowledge of a byte costs; a training that diverged has come to that."""


def train_alone(config: TrainConfig, held_out: int) -> float:
    """Train for `config.steps`, and return held-out bits per byte over so many tokens.

    Args:
        config: with the options of `ALONE`.
        held_out: tokens of the evaluation, spread over the held-out text.
    """
    assert config.steps is not None
    plan = make_plan(config)
    config = plan.config
    backend = backends.create("torch:cpu", threads=1, kernels=plan.kernels[0], cpu_blas="auto")
    backend.bind(plan.model, plan.layout.slots, plan.layout.n_floats, None)
    for name, value in families.init_params(plan.model, config.seed).items():
        slot = plan.layout.slots[name]
        backend.inbox[slot.offset : slot.offset + slot.size] = value.ravel()
    backend.refresh()
    optimizer = optim.build(
        config,
        families.hidden_matrices(plan.model),
        groups=families.rate_groups(plan.model),
    )
    target = Target(
        flat=backend.inbox,
        slots=plan.layout.slots,
        locks=None,
        mode=updates.WRITE_MODES["racy"],  # nobody else writes
        private={s: np.zeros(plan.layout.n_floats, np.float32) for s in plan.private_state},
        shared={},
        decay=plan.decay,
    )
    schedule, batches = plan.schedule(plan.budget.step_share(plan.tokens_per_step)), plan.batches()
    for k in range(config.steps):
        _, grads = backend.loss_and_grads(batches.at(*divmod(k, batches.n_tickets)))
        norm = gradients.global_norm(grads)
        if not math.isfinite(norm):
            continue
        optimizer.step(
            target,
            grads,
            lr=schedule(k / config.steps, k),
            step=k + 1,
            grad_scale=gradients.clip_factor(norm, config.clip),
        )
        backend.refresh()
    text = plan.data.open(plan.config.seq_len)[1]
    bits = held_out_bits(backend, text, plan.config.seq_len, held_out)
    backend.close()
    return bits if math.isfinite(bits) else WORST_BITS


def model_of(width: int, blocks: int) -> str:
    """The file of a model like `tiny` of another width and depth."""
    return model_file(hidden_size=width, num_hidden_layers=blocks)
