"""Selective copying: repeat the first tokens in order, without the blanks between them.

    head: C content tokens, B = T - 2C - 1 blanks before them | marker | C blanks

Every blank is directly before a random one of the C tokens, so the head ends with content. The
reference draws the blanks from a generator shared with other draws; here they come from the task's
stream.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Findings, first_place
from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    Ints,
    Rows,
    Settings,
    TaskType,
    seq_len,
    too_small,
)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Settings):
    """Settings; content is 0 .. V-3, the blank V-2, the copy marker V-1."""

    task: ClassVar[str] = "selective-copying"

    seq_len: int = seq_len(256)
    tokens_to_copy: int = option(
        16, "C, tokens to copy", low=1, aliases=("num_tokens_to_copy", "copy")
    )

    @property
    def blanks(self) -> int:
        """B."""
        return self.seq_len - 2 * self.tokens_to_copy - 1

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from too_small("vocab", self.vocab, "content, a blank and the copy marker", 3)
        if self.blanks < 1:
            most = (self.seq_len - 2) // 2
            way_out = f", or tokens_to_copy at most {most}" if most else ""
            yield (
                f"seq_len is {self.seq_len}; copying {self.tokens_to_copy} tokens leaves no blank "
                f"between them: at least {2 * self.tokens_to_copy + 2}{way_out}"
            )


def draw(
    s: SelectiveCopying, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; training and test rows are of one kind."""
    T, C = s.seq_len, s.tokens_to_copy
    content = rng.integers(0, s.vocab - 2, (n, C), dtype=np.int32)
    before = rng.multinomial(s.blanks, np.full(C, 1 / C), size=n)
    x = np.full((n, T), s.vocab - 2, np.int32)
    x[np.arange(n)[:, None], np.cumsum(before, axis=1) + np.arange(C)] = content
    x[:, T - C - 1] = s.vocab - 1
    y = np.full((n, T), IGNORED, np.int32)
    y[:, T - C :] = content
    return x, y


def check(s: SelectiveCopying, findings: Findings, data: Dataset) -> None:
    """Apply invariants 13 to 15, and the bounds."""
    for split, (x, y) in data.splits().items():
        if findings.has_width(13, split, x, s.seq_len):
            _check_rows(s, findings, split, x, y)
    C, B = s.tokens_to_copy, s.blanks
    gaps = math.sqrt(C) * (4 * math.pi * B / C) ** (-(C - 1) / 2)  # multinomial
    gaps = max(min(gaps, 1.0), float(C) ** -B)
    findings.duplicates(data, float(float(s.vocab - 2) ** -C * gaps))


def _check_rows(s: SelectiveCopying, findings: Findings, split: str, x: Ints, y: Ints) -> None:
    T, C, V = s.seq_len, s.tokens_to_copy, s.vocab
    tail = np.full(C + 1, V - 2)
    tail[0] = V - 1
    wrong_tail = x[:, T - C - 1 :] != tail

    def say_tail(row: int) -> str:
        at = first_place(wrong_tail[row])
        what = "the blank" if at else "the copy marker"
        return f"token {x[row, T - C - 1 + at]} at {T - C - 1 + at}, expected {what} {tail[at]}"

    good = findings.rows(13, split, wrong_tail.any(1), say_tail, np.ones(len(x), bool))
    head = x[:, : T - C - 1]
    content, blank = (head >= 0) & (head < V - 2), head == V - 2
    wrong = (content.sum(1) != C) | (content | ~blank).sum(1) != C
    wrong |= ~content[:, -1]

    def say_head(row: int) -> str:
        got = f"{content[row].sum()} content tokens and {blank[row].sum()} blanks"
        end = "" if content[row, -1] else f", and {head[row, -1]} at its end"
        return f"the head has {got}{end}; expected {C} and {s.blanks}, content at the end"

    good = findings.rows(14, split, wrong, say_head, good)
    expected = np.full(y.shape, IGNORED)
    expected[good, T - C :] = head[good][content[good]].reshape(-1, C)
    good = findings.targets(15, split, y, expected, good)
    if len(x) >= ENOUGH_ROWS and good.any():
        copied = head[good][content[good]]
        findings.uniform("uniform content", split, copied, 0, V - 2)
        _check_gaps(s, findings, split, content[good])


def _check_gaps(s: SelectiveCopying, findings: Findings, split: str, content: Bools) -> None:
    """Blanks before each content token are multinomial."""
    C = s.tokens_to_copy
    at = np.nonzero(content)[1].reshape(-1, C)
    gaps = np.diff(at, axis=1, prepend=-1) - 1
    average = s.blanks / C
    squares = ((gaps - average) ** 2).mean(1)
    findings.mean("variance of blank gaps", split, squares, average * (1 - 1 / C))
    last = gaps[:, -1] if C > 1 else gaps[:, 0]
    findings.mean("blanks before the last content token", split, last, average)


SELECTIVE_COPYING = TaskType(
    "selective-copying",
    "SC",
    SelectiveCopying,
    draw,
    check=check,
    about="the first tokens in order, without the blanks between them",
)
