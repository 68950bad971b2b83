"""The official parity task of the xLSTM package, and a learner made of this package's own parts.

A sequence of size N has N - 1 tokens drawn from {1, 2}; the answer to give after the last of them
is 1 + (how many are 2, mod 2). Only that position is scored, as a next-token prediction. Training
sizes are 3 to 40, validation sizes 40 to 256, each drawn uniformly.

Source: NX-AI/xlstm, experiments/parity_xlstm*.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import arena, backends
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.optim import AdamW, Target, clip, schedules, updates

TRAIN_SIZES, LONG_SIZES = (3, 40), (40, 256)
CHANCE = 0.5
STACKS = {
    "[mLSTM, sLSTM]": (1,),
    "[sLSTM, sLSTM]": (0, 1),
    "[mLSTM, mLSTM]": (),
}
"""Name -> which of the two blocks are sLSTM blocks; the first takes longest to be solved."""


@dataclass(frozen=True)
class Recipe:
    """How a stack is trained; the defaults are the official ones."""

    batch: int = 256
    lr: float = 1e-3
    warmup: int = 2000
    steps: int = 20_000
    lr_floor: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 0.0  # largest gradient norm; 0 is any

    @classmethod
    def quick(cls) -> Recipe:
        """A recipe that gets there in minutes.

        Without clipping the mixed stack loses again and again what it has learnt, and the official
        schedule is long enough for that; this one takes the largest norm and the second moment of
        xlstm-jax instead, and a larger step size.
        """
        return cls(lr=3e-3, warmup=300, steps=4000, beta2=0.95, clip=0.5)


def parity(r: np.random.Generator, count: int, sizes: tuple[int, int]) -> Batch:
    """Draw sequences, cut to the longest of them.

    Args:
        r: the generator; what follows depends on nothing else.
        count: sequences.
        sizes: least and largest size N, at least 2.

    Returns:
        x (count, S) with 0 behind a sequence's own tokens, and y with the one scored label.
    """
    sizes_drawn = r.integers(sizes[0], sizes[1] + 1, count)
    last = sizes_drawn - 2  # position of the last token, where the answer is predicted
    S = int(last.max()) + 1
    tokens = r.integers(1, 3, (count, S))
    x = np.where(np.arange(S) <= last[:, None], tokens, 0)
    y = np.full((count, S), IGNORED)
    y[np.arange(count), last] = 1 + (x == 2).sum(1) % 2
    return Batch(x.astype(np.int32), y.astype(np.int32), n_bytes=0)


def stack(slstm_at: Sequence[int], *, d: int = 64, context: int = 256) -> ModelConfig:
    """Two blocks of the original stack with one head each, and a vocabulary of 3."""
    fields: dict[str, object] = {
        "model_type": "xlstm_v1",
        "vocab_size": 3,
        "embedding_dim": d,
        "num_blocks": 2,
        "slstm_at": list(slstm_at),
        "context_length": context,
    }
    if len(slstm_at) < 2:
        fields["mlstm_block"] = {"mlstm": {"num_heads": 1}}
    if slstm_at:
        fields["slstm_block"] = {"slstm": {"num_heads": 1}, "feedforward": {}}
    return families.read(fields, strict=True)


class Learner:
    """A model, its optimizer and its data, in this process alone."""

    def __init__(
        self,
        cfg: ModelConfig,
        recipe: Recipe,
        *,
        backend: str = "torch:cpu",
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        """Draw initial values; the seed decides everything."""
        spec = families.param_spec(cfg)
        layout = arena.plan(spec, max_workers=1, n_tickets=1)
        self.backend = backends.create(backend, threads=threads, kernels="auto", cpu_blas="auto")
        self.backend.bind(cfg, layout.slots, layout.n_floats, None)
        for name, value in families.init_params(cfg, seed).items():
            slot = layout.slots[name]
            self.backend.inbox[slot.offset : slot.offset + slot.size] = value.ravel()
        self.backend.refresh()
        self.recipe, self.steps = recipe, 0
        self._optimizer = AdamW(
            beta1=recipe.beta1, beta2=recipe.beta2, weight_decay=recipe.weight_decay
        )
        self._target = Target(
            flat=self.backend.inbox,
            slots=layout.slots,
            locks=None,
            mode=updates.WRITE_MODES["racy"],  # nobody else writes
            private={
                name: np.zeros(layout.n_floats, np.float32)
                for name in self._optimizer.state_segments
            },
            shared={},
            decay=frozenset(name for name, parameter in spec.items() if parameter.decay),
        )
        self._schedule = schedules.cosine(
            recipe.lr, warmup=recipe.warmup / recipe.steps, floor=recipe.lr_floor
        )
        self._data = np.random.default_rng((seed, 1))

    def step(self, sizes: tuple[int, int] = TRAIN_SIZES) -> float:
        """One update; returns the loss before it, in nats."""
        loss, grads = self.backend.loss_and_grads(parity(self._data, self.recipe.batch, sizes))
        lr = self._schedule((self.steps + 1) / self.recipe.steps, self.steps)
        self.steps += 1
        scale = clip.clip_factor(clip.global_norm(grads), self.recipe.clip)
        self._optimizer.step(self._target, grads, lr=lr, step=self.steps, grad_scale=scale)
        self.backend.refresh()
        return loss

    def accuracy(self, size: int, count: int = 64) -> float:
        """Share of right answers among fresh sequences of one size, the same in every call."""
        batch = parity(np.random.default_rng((2, size)), count, (size, size))
        logits, _ = self.backend.logits(batch.x, None)
        return float((logits.argmax(-1) == batch.y[:, -1]).mean())


def scaled(accuracy: float) -> float:
    """0 at chance, 1 where all is right; the paper's measure."""
    return (accuracy - CHANCE) / (1 - CHANCE)


def grid(sizes: tuple[int, int], points: int) -> NDArray[np.int64]:
    """Sizes from the least to the largest, evenly."""
    return np.linspace(*sizes, points).round().astype(np.int64)
