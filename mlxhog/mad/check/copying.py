"""Invariants 13 to 15: selective copying."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check import statistics
from mlxhog.mad.check.findings import Findings, first_place
from mlxhog.mad.tasks.selective_copying import SelectiveCopying
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]


def check(found: Findings, s: SelectiveCopying, split: str, x: Ints, y: Ints) -> None:
    """Apply invariants 13 to 15, and the bounds, to the rows of a split."""
    T, C, V = s.seq_len, s.tokens_to_copy, s.vocab
    if not found.holds(13, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
        return
    tail = np.full(C + 1, V - 2)
    tail[0] = V - 1
    wrong_tail = x[:, T - C - 1 :] != tail

    def say_tail(row: int) -> str:
        at = first_place(wrong_tail[row])
        what = "the blank" if at else "the copy marker"
        return f"token {x[row, T - C - 1 + at]} at {T - C - 1 + at}, wanted {what} {tail[at]}"

    good = found.rows(13, split, wrong_tail.any(1), say_tail, np.ones(len(x), bool))
    head = x[:, : T - C - 1]
    content, blank = (head >= 0) & (head < V - 2), head == V - 2
    wrong = (content.sum(1) != C) | (content | ~blank).sum(1) != C
    wrong |= ~content[:, -1]

    def say_head(row: int) -> str:
        got = f"{content[row].sum()} content tokens and {blank[row].sum()} blanks"
        end = "" if content[row, -1] else f", and {head[row, -1]} at its end"
        return f"the head has {got}{end}; wanted {C} and {s.blanks}, content at the end"

    good = found.rows(14, split, wrong, say_head, good)
    wanted = np.full(y.shape, IGNORED)
    wanted[good, T - C :] = head[good][content[good]].reshape(-1, C)
    wrong_y = y != wanted

    def say_targets(row: int) -> str:
        at = first_place(wrong_y[row])
        return f"target {y[row, at]} at {at}, wanted {wanted[row, at]}"

    good = found.rows(15, split, wrong_y.any(1), say_targets, good)
    if len(x) >= statistics.ENOUGH_ROWS and good.any():
        copied = head[good][content[good]]
        statistics.uniform(found, "uniform content", split, copied, 0, V - 2)
        _gaps(found, s, split, content[good])


def _gaps(found: Findings, s: SelectiveCopying, split: str, content: NDArray[np.bool_]) -> None:
    """Blanks before each content token are multinomial."""
    C = s.tokens_to_copy
    at = np.nonzero(content)[1].reshape(-1, C)
    gaps = np.diff(at, axis=1, prepend=-1) - 1
    average = s.blanks / C
    squares = ((gaps - average) ** 2).mean(1)
    statistics.mean(found, "variance of blank gaps", split, squares, average * (1 - 1 / C))
    last = gaps[:, -1] if C > 1 else gaps[:, 0]
    statistics.mean(found, "blanks before the last content token", split, last, average)


def chance_of_equal_rows(s: SelectiveCopying) -> float:
    """Return about how likely two rows are equal: content, and the multinomial gaps."""
    C, B = s.tokens_to_copy, s.blanks
    gaps = math.sqrt(C) * (4 * math.pi * B / C) ** (-(C - 1) / 2)
    gaps = max(min(gaps, 1.0), float(C) ** -B)
    return float(float(s.vocab - 2) ** -C * gaps)
