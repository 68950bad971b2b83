"""Memorization: one map from keys to values for the whole data set.

T/2 pairs of a key and the insert marker; the value is the marker's target. The map depends only on
the seed, and is the same in training and test. The reference's map includes noise tokens; this one
does not.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    NoiseSettings,
    Rows,
    TaskType,
    rows,
    seq_len,
    too_small,
    vocab,
)


@dataclass(frozen=True, kw_only=True)
class Memorization(NoiseSettings):
    """Settings; keys are 0 .. K-1, values K .. R-1, noise R .. V-2, the insert marker V-1."""

    task: ClassVar[str] = "memorization"

    vocab: int = vocab(256)
    seq_len: int = seq_len(32)
    train_rows: int = rows(256, "training", "num_train")

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
        if self.seq_len % 2:
            yield (
                f"seq_len is {self.seq_len}; a sequence is pairs of key and marker: "
                "an even number, at least 2"
            )
        why = f"a key and a value beside the insert marker and {self.noise_vocab} for noise"
        yield from too_small("vocab", self.vocab, why, 3 + self.noise_vocab)
        yield from super().broken_rules()


def draw_map(s: Memorization, rng: np.random.Generator) -> Fixed:
    """Draw the map: every key with a different value."""
    values = s.keys + rng.permutation(s.ordinary - s.keys)[: s.keys]
    return {"kv_keys": rng.permutation(s.keys), "kv_values": values}


def draw(
    s: Memorization, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; training and test rows are of one kind."""
    pairs = s.seq_len // 2
    chosen = rng.integers(0, s.keys, (n, pairs))
    x = np.full((n, s.seq_len), s.vocab - 1, np.int32)
    y = np.full((n, s.seq_len), IGNORED, np.int32)
    x[:, ::2] = fixed["kv_keys"][chosen]
    y[:, 1::2] = fixed["kv_values"][chosen]
    if s.frac_noise:
        noisy = rng.random((n, pairs)) < s.frac_noise
        noisy[np.arange(n), rng.integers(0, pairs, n)] = False  # never every pair of a row
        noise = rng.integers(s.ordinary, s.vocab - 1, (n, s.seq_len), dtype=np.int32)
        both = np.repeat(noisy, 2, axis=1)
        x, y = np.where(both, noise, x), np.where(both, IGNORED, y)
    return x, y


MEMORIZATION = TaskType(
    "memorization",
    "M",
    Memorization,
    draw,
    draw_map,
    about="one map from keys to values for all sequences, learnt from the training rows",
)
