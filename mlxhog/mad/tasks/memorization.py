"""Memorization: one map from keys to values for the whole data set.

T/2 pairs of a key and the insert marker; the value is the marker's target. The map depends only on
the seed, and is the same in training and test. The reference's map includes noise tokens; this one
does not.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks.task import IGNORED, Fixed, NoisyTask, Rng, Rows


@dataclass(frozen=True, kw_only=True)
class Memorization(NoisyTask):
    """The task; keys are 0 .. K-1, values K .. R-1, noise R .. V-2, the insert marker V-1."""

    name: ClassVar[str] = "memorization"
    short: ClassVar[str] = "M"
    about: ClassVar[str] = (
        "one map from keys to values for all sequences, learnt from the training rows"
    )

    vocab: int = 256
    seq_len: int = 32
    train_rows: int = 256

    @property
    def ordinary(self) -> int:
        """R."""
        return self.vocab - 1 - self.noise_vocab

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from self.at_least("seq_len", 2, "a sequence is pairs of key and marker", step=2)
        why = f"a key and a value beside the insert marker and {self.noise_vocab} for noise"
        yield from self.at_least("vocab", 3 + self.noise_vocab, why)
        yield from super().broken_rules()

    def draw_fixed(self, rng: Rng) -> Fixed:
        """Draw the map: every key with a different value."""
        values = self.keys + rng.permutation(self.ordinary - self.keys)[: self.keys]
        return {"kv_keys": rng.permutation(self.keys), "kv_values": values}

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; training and test rows are of one kind."""
        pairs = self.seq_len // 2
        chosen = rng.integers(0, self.keys, (n, pairs))
        x = np.full((n, self.seq_len), self.vocab - 1, np.int32)
        y = np.full((n, self.seq_len), IGNORED, np.int32)
        x[:, ::2] = fixed["kv_keys"][chosen]
        y[:, 1::2] = fixed["kv_values"][chosen]
        if self.frac_noise:
            noisy = rng.random((n, pairs)) < self.frac_noise
            noisy[np.arange(n), rng.integers(0, pairs, n)] = False  # never every pair of a row
            noise = rng.integers(self.ordinary, self.vocab - 1, (n, self.seq_len), dtype=np.int32)
            both = np.repeat(noisy, 2, axis=1)
            x, y = np.where(both, noise, x), np.where(both, IGNORED, y)
        return x, y
