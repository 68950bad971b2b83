"""Compression: random tokens, to be reconstructed from the vector of the last position.

Targets are the inputs, with the compression token at the end. Noise tokens are not scored; the
reference masks them in a copy that it does not return.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Findings, chance_of_pair, first_place
from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    Ints,
    NoiseSettings,
    Rows,
    TaskType,
    seq_len,
    too_small,
)


@dataclass(frozen=True, kw_only=True)
class Compression(NoiseSettings):
    """Settings; tokens are 0 .. R-1, noise R .. V-2, the compression token V-1."""

    task: ClassVar[str] = "compression"

    seq_len: int = seq_len(32)

    @property
    def ordinary(self) -> int:
        """R."""
        return self.vocab - 1 - self.noise_vocab

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        why = f"a token beside the compression token and {self.noise_vocab} for noise"
        yield from too_small("vocab", self.vocab, why, 2 + self.noise_vocab)
        yield from too_small("seq_len", self.seq_len, "a token and the compression token", 2)
        yield from super().broken_rules()


def draw(
    s: Compression, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; training and test rows are of one kind."""
    x = rng.integers(0, s.ordinary, (n, s.seq_len), dtype=np.int32)
    x[:, -1] = s.vocab - 1
    if not s.frac_noise:
        return x, x
    noisy = rng.random((n, s.seq_len)) < s.frac_noise
    noisy[:, -1] = False
    x = np.where(noisy, rng.integers(s.ordinary, s.vocab - 1, x.shape, dtype=np.int32), x)
    return x, np.where(noisy, IGNORED, x)


def check(s: Compression, findings: Findings, data: Dataset) -> None:
    """Apply invariant 16, and the bounds."""
    for split, (x, y) in data.splits().items():
        if findings.has_width(16, split, x, s.seq_len):
            _check_rows(s, findings, split, x, y)
    token = chance_of_pair(1 / s.ordinary, s.frac_noise, s.noise_vocab)
    findings.duplicates(data, float(token ** (s.seq_len - 1)))


def _check_rows(s: Compression, findings: Findings, split: str, x: Ints, y: Ints) -> None:
    T, V = s.seq_len, s.vocab
    place = np.arange(T) == T - 1
    most = V - 1 if s.frac_noise else s.ordinary
    token = (x >= 0) & (x < most)
    noisy = token & (x >= s.ordinary)
    right = np.where(place, x == V - 1, token) & (y == np.where(noisy, IGNORED, x))

    def say(row: int) -> str:
        at = first_place(~right[row])
        expected = f"{V - 1}" if at == T - 1 else f"0..{most - 1}"
        same = "the input as target"
        if s.frac_noise:
            same = "no target for noise, else the input"
        return (
            f"input {x[row, at]} and target {y[row, at]} at {at}, "
            f"expected input {expected} and {same}"
        )

    good = findings.rows(16, split, ~right.all(1), say, np.ones(len(x), bool))
    if len(x) >= ENOUGH_ROWS and good.any():
        tokens, noise = x[good, :-1], noisy[good, :-1]
        findings.uniform("uniform tokens", split, tokens[~noise], 0, s.ordinary)
        if s.frac_noise:
            findings.share("noise share", split, noise, s.frac_noise, s.frac_noise)


COMPRESSION = TaskType(
    "compression",
    "C",
    Compression,
    draw,
    backbone="autoencoder",
    check=check,
    about="random tokens reconstructed from the vector of the last position",
)
