"""Mano: arithmetic modulo p on random expressions, whose tables only the parameters can hold.

    row:     problems one after the other, as many as fit, then begin markers to the end
    problem: begin | `l operations` | expression of l operations | answer marker | answer

The answer is the target of the answer marker, and the only one of a problem. Training rows have l
uniform over 1 .. L, test rows L operations. An expression of l operations is, in prefix form, one
of + - * and two expressions, the first of which has 0 .. l-1 of the other l-1 operations,
uniformly; one of 0 operations is a uniform number below p.

The reference packs problems as it packs texts, trains on every token, has a second, interchangeable
name for each marker and operation, and repeats l in the answer marker.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351, and its generator of Mano,
which is the model of the statistics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import IGNORED, Fixed, Ints, Rng, Rows, Task

OPERATIONS = 3
FRAME = 4
"""Tokens of a problem beside its expression."""


@dataclass(frozen=True, kw_only=True)
class Mano(Task):
    """The task; numbers are 0 .. p-1, then + - *, then `l operations`; V-2 is the answer marker.

    V-1 is the begin marker.
    """

    name: ClassVar[str] = "mano"
    short: ClassVar[str] = "MA"
    about: ClassVar[str] = (
        "arithmetic modulo p on random expressions, whose tables only the parameters hold"
    )

    seq_len: int = 64
    modulus: int = option(7, "p, numbers are taken modulo p", low=2)
    operations: int = option(2, "L, most operations of an expression", low=1, high=256)

    @property
    def longest(self) -> int:
        """Tokens of a problem of L operations."""
        return FRAME + 2 * self.operations + 1

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        why = f"{self.modulus} numbers, + - *, {self.operations} lengths and two markers"
        least = self.modulus + OPERATIONS + self.operations + 2
        yield from self.at_least("vocab", least, why)
        why = f"a problem of {self.operations} operations, whose answer is a target only"
        yield from self.at_least("seq_len", self.longest - 1, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; every problem of a test row has L operations."""
        T, p, L = self.seq_len, self.modulus, self.operations
        most = (T + 1) // (FRAME + 3 if train else self.longest)
        length = rng.integers(1, L + 1, (n, most)) if train else np.full((n, most), L)
        end = (FRAME + 1 + 2 * length).cumsum(axis=1)
        fits = end <= T + 1
        row, length, end = np.nonzero(fits)[0], length[fits], end[fits]
        tokens = _expressions(self, rng, length)
        answer = value(self, tokens)
        text = np.full((n, T + 1), self.vocab - 1, np.int32)
        text[row, end - 2 * length - FRAME] = p + OPERATIONS - 1 + length
        inside = np.arange(2 * L + 1) <= 2 * length[:, None]
        at = end[:, None] - 2 * length[:, None] - FRAME + 1 + np.arange(2 * L + 1)
        text[np.broadcast_to(row[:, None], at.shape)[inside], at[inside]] = tokens[inside]
        text[row, end - 2] = self.vocab - 2
        text[row, end - 1] = answer
        y = np.full((n, T), IGNORED, np.int32)
        y[row, end - 2] = answer
        return text[:, :-1], y


def _expressions(s: Mano, rng: Rng, length: Ints) -> Ints:
    """Draw expressions of `length` operations (n,): tokens (n, 2 L + 1), of which 2 l + 1 count."""
    n, width, row = len(length), 2 * s.operations + 1, np.arange(len(length))
    tokens = rng.integers(0, s.modulus, (width, n))
    operations = rng.integers(s.modulus, s.modulus + OPERATIONS, (width, n))
    cut = rng.random((width, n))
    sizes = np.zeros((width + 1, n), np.int64)  # operations of the expression that begins there
    sizes[0] = length
    for at in range(width - 1):
        size = sizes[at].copy()
        inner = size > 0
        first = (cut[at] * size).astype(np.int64)
        sizes[at + 1] = np.where(inner, first, sizes[at + 1])
        sizes[np.where(inner, at + 2 * first + 2, width), row] = size - 1 - first
        tokens[at] = np.where(inner, operations[at], tokens[at])
    return tokens.T


def value(s: Mano, tokens: Ints) -> Ints:
    """Return the values (n,) of tokens (n, width) that begin with an expression in prefix form."""
    width, row = tokens.shape[1], np.arange(len(tokens))
    values = np.zeros((width + 1, len(tokens)), np.int64)  # of the expression that begins there
    spans = np.ones((width + 1, len(tokens)), np.int64)  # its tokens
    for at in reversed(range(width)):
        token, first = tokens[:, at], spans[at + 1]
        right = np.minimum(at + 1 + first, width)
        a, b = values[at + 1], values[right, row]
        plus_minus = np.where(token == s.modulus, a + b, a - b)
        result = np.where(token == s.modulus + 2, a * b, plus_minus) % s.modulus
        number = token < s.modulus
        values[at] = np.where(number, token, result)
        spans[at] = np.where(number, 1, np.minimum(1 + first + spans[right, row], width))
    whole: Ints = values[0]
    return whole
