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

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Findings
from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    Ints,
    Rows,
    Settings,
    TaskType,
    seq_len,
    too_small,
    vocab,
)

OPERATIONS = 3
FRAME = 4
"""Tokens of a problem beside its expression."""


@dataclass(frozen=True, kw_only=True)
class Mano(Settings):
    """Settings; numbers are 0 .. p-1, then + - *, then `l operations`; V-2 is the answer marker.

    V-1 is the begin marker.
    """

    task: ClassVar[str] = "mano"

    vocab: int = vocab(16)
    seq_len: int = seq_len(64)
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
        yield from too_small("vocab", self.vocab, why, least)
        why = f"a problem of {self.operations} operations, whose answer is a target only"
        yield from too_small("seq_len", self.seq_len, why, self.longest - 1)


def draw(
    s: Mano, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; every problem of a test row has L operations."""
    T, p, L = s.seq_len, s.modulus, s.operations
    most = (T + 1) // (FRAME + 3 if train else s.longest)
    length = rng.integers(1, L + 1, (n, most)) if train else np.full((n, most), L)
    end = (FRAME + 1 + 2 * length).cumsum(axis=1)
    fits = end <= T + 1
    row, length, end = np.nonzero(fits)[0], length[fits], end[fits]
    tokens = _expressions(s, rng, length)
    answer = value(s, tokens)
    text = np.full((n, T + 1), s.vocab - 1, np.int32)
    text[row, end - 2 * length - FRAME] = p + OPERATIONS - 1 + length
    inside = np.arange(2 * L + 1) <= 2 * length[:, None]
    at = end[:, None] - 2 * length[:, None] - FRAME + 1 + np.arange(2 * L + 1)
    text[np.broadcast_to(row[:, None], at.shape)[inside], at[inside]] = tokens[inside]
    text[row, end - 2] = s.vocab - 2
    text[row, end - 1] = answer
    y = np.full((n, T), IGNORED, np.int32)
    y[row, end - 2] = answer
    return text[:, :-1], y


def _expressions(s: Mano, rng: np.random.Generator, length: Ints) -> Ints:
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


def check(s: Mano, findings: Findings, data: Dataset) -> None:
    """Apply invariants 33 to 35, and the bounds."""
    for split, (x, y) in data.splits().items():
        if findings.has_width(33, split, x, s.seq_len):
            _check_rows(s, findings, split, x, y)
    same = [1.0]  # probability that two expressions of l operations are of one form
    for size in range(1, s.operations + 1):
        same.append(sum(same[i] * same[size - 1 - i] for i in range(size)) / size**2)
    sizes = range(1, s.operations + 1)
    equal = [same[size] / OPERATIONS**size / s.modulus ** (size + 1) for size in sizes]
    problem = max(equal[-1], sum(equal) / s.operations**2)
    findings.duplicates(data, problem ** ((s.seq_len + 1) // s.longest))


def _check_rows(s: Mano, findings: Findings, split: str, x: Ints, y: Ints) -> None:
    V, L = s.vocab, s.operations
    fewest, row = 1 if split == "train" else L, np.arange(len(x))
    text = np.concatenate([x, np.where(y[:, -1:] == IGNORED, V - 1, y[:, -1:])], axis=1)
    text = np.pad(text, ((0, 0), (0, s.longest)), constant_values=V - 1)
    targets = np.full(text.shape, IGNORED)
    begin, fault, answer = (np.zeros(len(x), np.int64) for _ in range(3))
    lengths: list[Ints] = []
    firsts: list[Ints] = []
    while True:  # one problem of every row at a time; a row with a fault stays at that problem
        going = (fault == 0) & (text[row, begin + 1] != V - 1)
        if not going.any():
            break
        length = text[row, begin + 1] - s.modulus - OPERATIONS + 1
        size = np.clip(length, 0, L)
        end = begin + 2 * size + FRAME + 1
        framed = (length >= fewest) & (length <= L) & (end <= s.seq_len + 1)
        framed &= (text[row, begin] == V - 1) & (text[row, end - 2] == V - 2)
        tokens = text[row[:, None], begin[:, None] + 2 + np.arange(2 * L + 1)]
        formed = _well_formed(s, tokens, size)
        answer = np.where(going, value(s, tokens), answer)
        right = text[row, end - 1] == answer
        fault = np.where(going, np.select([~framed, ~formed, ~right], [33, 34, 35]), fault)
        going &= fault == 0
        targets[row[going], end[going] - 2] = answer[going]
        if not lengths:  # later ones are shorter on average: a long one may not fit
            lengths.append(length[going])
            firsts.append(tokens[going][np.arange(2 * L + 1) <= 2 * size[going, None]])
        begin = np.where(going, end, begin)
    rest = s.seq_len + 1 - begin
    filled = ((text == V - 1) | (np.arange(text.shape[1]) < begin[:, None])).all(axis=1)
    fault = np.where((fault == 0) & (~filled | (rest >= s.longest)), 33, fault)

    def say(number: int) -> str:
        at = begin[number]
        problem = f"the problem at {at}: {text[number, at : at + s.longest].tolist()}"
        return (
            problem
            + {
                33: f"; expected {V - 1}, a length of {fewest}..{L} operations, its expression, "
                f"{V - 2} and an answer, or fewer than {s.longest} begin markers at the end",
                34: "; its expression is not one of that many operations in prefix form",
                35: f"; its answer is {answer[number]}",
            }[int(fault[number])]
        )

    good = np.ones(len(x), bool)
    for rule in (33, 34, 35):
        good = findings.rows(rule, split, fault == rule, say, good)
    good = findings.targets(35, split, y, targets[:, : s.seq_len], good)
    if good.sum() >= ENOUGH_ROWS:
        number = firsts[0] < s.modulus
        findings.uniform("uniform numbers", split, firsts[0][number], 0, s.modulus)
        operations = firsts[0][~number] - s.modulus
        findings.uniform("uniform operations", split, operations, 0, OPERATIONS)
        if split == "train":
            findings.uniform("uniform lengths", split, lengths[0], 1, L + 1)


def _well_formed(s: Mano, tokens: Ints, length: Ints) -> Bools:
    """Whether tokens (n, 2 L + 1) begin with an expression of `length` operations (n,)."""
    at, last = np.arange(tokens.shape[1]), 2 * length[:, None]
    known = (tokens >= 0) & (tokens < s.modulus + OPERATIONS)
    missing = 1 + np.where(tokens < s.modulus, -1, 1).cumsum(axis=1)  # expressions still to come
    right: Bools = ((known & ((missing > 0) == (at < last))) | (at > last)).all(axis=1)
    return right


MANO = TaskType(
    "mano",
    "MA",
    Mano,
    draw,
    check=check,
    about="arithmetic modulo p on random expressions, whose tables only the parameters hold",
)
