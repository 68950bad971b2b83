"""Compression: random tokens, to be reconstructed from the vector of the last position.

Targets are the inputs, with the compression token at the end. Noise tokens are not scored; the
reference masks them in a copy that it does not return.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks.task import IGNORED, Fixed, NoisyTask, Rng, Rows


@dataclass(frozen=True, kw_only=True)
class Compression(NoisyTask):
    """The task; tokens are 0 .. R-1, noise R .. V-2, the compression token V-1."""

    name: ClassVar[str] = "compression"
    short: ClassVar[str] = "C"
    about: ClassVar[str] = "random tokens reconstructed from the vector of the last position"
    backbone: ClassVar[str] = "autoencoder"

    seq_len: int = 32

    @property
    def ordinary(self) -> int:
        """R."""
        return self.vocab - 1 - self.noise_vocab

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        why = f"a token beside the compression token and {self.noise_vocab} for noise"
        yield from self.at_least("vocab", 2 + self.noise_vocab, why)
        yield from self.at_least("seq_len", 2, "a token and the compression token")
        yield from super().broken_rules()

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; training and test rows are of one kind."""
        x = rng.integers(0, self.ordinary, (n, self.seq_len), dtype=np.int32)
        x[:, -1] = self.vocab - 1
        if not self.frac_noise:
            return x, x
        noisy = rng.random((n, self.seq_len)) < self.frac_noise
        noisy[:, -1] = False
        x = np.where(noisy, rng.integers(self.ordinary, self.vocab - 1, x.shape, dtype=np.int32), x)
        return x, np.where(noisy, IGNORED, x)
