"""The tasks of the benchmark that copy, reconstruct and memorize tokens.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.data.batch import IGNORED
from mlxhog.mad.tasks.task import Fixed, NoisyTask, Rng, Rows, Task


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Selective copying: repeat the first tokens in order, without the blanks between them.

        head: C content tokens, B = T - 2C - 1 blanks before them | marker | C blanks

    Every blank is directly before a random one of the C tokens, so the head ends with content. The
    reference draws the blanks from a generator shared with other draws; here they come from the
    task's stream.

    Content is 0 .. V-3, the blank V-2, the copy marker V-1.
    """

    name: ClassVar[str] = "selective-copying"
    short: ClassVar[str] = "SC"
    about: ClassVar[str] = "the first tokens in order, without the blanks between them"

    seq_len: int = 256
    tokens_to_copy: int = option(
        16, "C, tokens to copy", low=1, aliases=("num_tokens_to_copy", "copy")
    )

    def broken_rules(self) -> Iterator[str]:
        yield from self.at_least("vocab", 3, "content, a blank and the copy marker")
        why = f"{self.tokens_to_copy} tokens, as many answers, the marker and a blank"
        yield from self.at_least("seq_len", 2 * self.tokens_to_copy + 2, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        T, C = self.seq_len, self.tokens_to_copy
        content = rng.integers(0, self.vocab - 2, (n, C), dtype=np.int32)
        before = rng.multinomial(T - 2 * C - 1, np.full(C, 1 / C), size=n)
        x = np.full((n, T), self.vocab - 2, np.int32)
        x[np.arange(n)[:, None], np.cumsum(before, axis=1) + np.arange(C)] = content
        x[:, T - C - 1] = self.vocab - 1
        y = np.full((n, T), IGNORED, np.int32)
        y[:, T - C :] = content
        return x, y


@dataclass(frozen=True, kw_only=True)
class Compression(NoisyTask):
    """Compression: random tokens, to be reconstructed from the vector of the last position.

    Targets are the inputs, with the compression token at the end. Noise tokens are not scored; the
    reference masks them in a copy that it does not return.

    Tokens are 0 .. R-1, noise R .. V-2, the compression token V-1.
    """

    name: ClassVar[str] = "compression"
    short: ClassVar[str] = "C"
    about: ClassVar[str] = "random tokens reconstructed from the vector of the last position"
    backbone: ClassVar[str] = "autoencoder"

    seq_len: int = 32

    def broken_rules(self) -> Iterator[str]:
        why = f"a token beside the compression token and {self.noise_vocab} for noise"
        yield from self.at_least("vocab", 2 + self.noise_vocab, why)
        yield from self.at_least("seq_len", 2, "a token and the compression token")
        yield from super().broken_rules()

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        x = rng.integers(0, self.ordinary, (n, self.seq_len), dtype=np.int32)
        x[:, -1] = self.vocab - 1
        if not self.frac_noise:
            return x, x
        noisy = rng.random((n, self.seq_len)) < self.frac_noise
        noisy[:, -1] = False
        x = np.where(noisy, rng.integers(self.ordinary, self.vocab - 1, x.shape, dtype=np.int32), x)
        return x, np.where(noisy, IGNORED, x)


@dataclass(frozen=True, kw_only=True)
class Memorization(NoisyTask):
    """Memorization: one map from keys to values for the whole data set.

    T/2 pairs of a key and the insert marker; the value is the marker's target. The map depends only
    on the seed, and is the same in training and test. The reference's map includes noise tokens;
    this one does not.

    Keys are 0 .. K-1, values K .. R-1, noise R .. V-2, the insert marker V-1.
    """

    name: ClassVar[str] = "memorization"
    short: ClassVar[str] = "M"
    about: ClassVar[str] = (
        "one map from keys to values for all sequences, learned from the training rows"
    )

    vocab: int = 256
    seq_len: int = 32
    train_rows: int = 256

    def broken_rules(self) -> Iterator[str]:
        yield from self.at_least("seq_len", 2, "a sequence is pairs of key and marker", step=2)
        why = f"a key and a value beside the insert marker and {self.noise_vocab} for noise"
        yield from self.at_least("vocab", 3 + self.noise_vocab, why)
        yield from super().broken_rules()

    def draw_fixed(self, rng: Rng) -> Fixed:
        """Draw the map: every key with a different value."""
        values = self.keys + rng.permutation(self.ordinary - self.keys)[: self.keys]
        return {"kv_keys": rng.permutation(self.keys), "kv_values": values}

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
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
