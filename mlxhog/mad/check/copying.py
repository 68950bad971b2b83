"""Invariants 13 to 18: selective copying, compression and memorization."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check.findings import (
    ENOUGH_ROWS,
    Bools,
    Findings,
    chance_of_pair,
    check_mean,
    check_share,
    check_uniform,
    first_place,
)
from mlxhog.mad.tasks.compression import Compression
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.memorization import Memorization
from mlxhog.mad.tasks.selective_copying import SelectiveCopying
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]


def check_copying(findings: Findings, s: SelectiveCopying, split: str, x: Ints, y: Ints) -> None:
    """Apply invariants 13 to 15, and the bounds, to the rows of a split."""
    T, C, V = s.seq_len, s.tokens_to_copy, s.vocab
    if not findings.holds(13, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
        return
    tail = np.full(C + 1, V - 2)
    tail[0] = V - 1
    wrong_tail = x[:, T - C - 1 :] != tail

    def say_tail(row: int) -> str:
        at = first_place(wrong_tail[row])
        what = "the blank" if at else "the copy marker"
        return f"token {x[row, T - C - 1 + at]} at {T - C - 1 + at}, wanted {what} {tail[at]}"

    good = findings.rows(13, split, wrong_tail.any(1), say_tail, np.ones(len(x), bool))
    head = x[:, : T - C - 1]
    content, blank = (head >= 0) & (head < V - 2), head == V - 2
    wrong = (content.sum(1) != C) | (content | ~blank).sum(1) != C
    wrong |= ~content[:, -1]

    def say_head(row: int) -> str:
        got = f"{content[row].sum()} content tokens and {blank[row].sum()} blanks"
        end = "" if content[row, -1] else f", and {head[row, -1]} at its end"
        return f"the head has {got}{end}; wanted {C} and {s.blanks}, content at the end"

    good = findings.rows(14, split, wrong, say_head, good)
    expected = np.full(y.shape, IGNORED)
    expected[good, T - C :] = head[good][content[good]].reshape(-1, C)
    wrong_y = y != expected

    def say_targets(row: int) -> str:
        at = first_place(wrong_y[row])
        return f"target {y[row, at]} at {at}, wanted {expected[row, at]}"

    good = findings.rows(15, split, wrong_y.any(1), say_targets, good)
    if len(x) >= ENOUGH_ROWS and good.any():
        copied = head[good][content[good]]
        check_uniform(findings, "uniform content", split, copied, 0, V - 2)
        _gaps(findings, s, split, content[good])


def _gaps(findings: Findings, s: SelectiveCopying, split: str, content: NDArray[np.bool_]) -> None:
    """Blanks before each content token are multinomial."""
    C = s.tokens_to_copy
    at = np.nonzero(content)[1].reshape(-1, C)
    gaps = np.diff(at, axis=1, prepend=-1) - 1
    average = s.blanks / C
    squares = ((gaps - average) ** 2).mean(1)
    check_mean(findings, "variance of blank gaps", split, squares, average * (1 - 1 / C))
    last = gaps[:, -1] if C > 1 else gaps[:, 0]
    check_mean(findings, "blanks before the last content token", split, last, average)


def equal_copying_rows(s: SelectiveCopying) -> float:
    """Return about how likely two rows are equal: content, and the multinomial gaps."""
    C, B = s.tokens_to_copy, s.blanks
    gaps = math.sqrt(C) * (4 * math.pi * B / C) ** (-(C - 1) / 2)
    gaps = max(min(gaps, 1.0), float(C) ** -B)
    return float(float(s.vocab - 2) ** -C * gaps)


def check_compression(findings: Findings, s: Compression, split: str, x: Ints, y: Ints) -> None:
    """Apply invariant 16, and the bounds, to the rows of a split."""
    T, V = s.seq_len, s.vocab
    if not findings.holds(16, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
        return
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
            same = "no target where noise is, else the input"
        return (
            f"input {x[row, at]} and target {y[row, at]} at {at}, "
            f"wanted input {expected} and {same}"
        )

    good = findings.rows(16, split, ~right.all(1), say, np.ones(len(x), bool))
    if len(x) >= ENOUGH_ROWS and good.any():
        tokens, noise = x[good, :-1], noisy[good, :-1]
        check_uniform(findings, "uniform tokens", split, tokens[~noise], 0, s.ordinary)
        if s.frac_noise:
            share = s.frac_noise
            count = int(noise.sum())
            check_share(findings, "noise share", split, count, noise.size, share, share)


def equal_compression_rows(s: Compression) -> float:
    """Return how likely two rows are equal."""
    token = chance_of_pair(1 / s.ordinary, s.frac_noise, s.noise_vocab)
    return float(token ** (s.seq_len - 1))


_NO_VALUE = -1


def check_memorization(findings: Findings, s: Memorization, data: Dataset) -> None:
    """Apply invariants 17 and 18, and the bounds, to all splits: they share one map."""
    good: dict[str, tuple[Ints, Ints, Bools]] = {}
    for split, arrays in data.splits().items():
        whole = _inputs(findings, s, split, arrays[0])
        if whole is not None:
            good[split] = (*arrays, whole)
    values = _map(findings, s, data, good)
    for split, (x, y, rows) in good.items():
        rows = _targets(findings, s, split, x, y, values, rows)
        if len(x) >= ENOUGH_ROWS and rows.any():
            key = x[rows, ::2]
            noisy = key >= s.ordinary
            check_uniform(findings, "uniform keys", split, key[~noisy], 0, s.keys)
            if s.frac_noise:
                fewest = s.frac_noise * (1 - 2 / s.seq_len)  # where one pair is never noise
                count, draws = int(noisy.sum()), noisy.size
                check_share(findings, "noise share", split, count, draws, fewest, s.frac_noise)


def _inputs(findings: Findings, s: Memorization, split: str, x: Ints) -> Bools | None:
    """Invariant 17; None where rows have another length."""
    T, V, R = s.seq_len, s.vocab, s.ordinary
    if not findings.holds(17, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
        return None
    key, marker = x[:, ::2], x[:, 1::2]
    plain = (key >= 0) & (key < s.keys) & (marker == V - 1)
    noise = (key >= R) & (key < V - 1) & (marker >= R) & (marker < V - 1)
    wrong = ~(plain | noise)

    def say(row: int) -> str:
        at = first_place(wrong[row])
        return (
            f"({key[row, at]}, {marker[row, at]}) at {2 * at}, wanted a key 0..{s.keys - 1} and "
            f"the insert marker {V - 1}"
        )

    return findings.rows(17, split, wrong.any(1), say, np.ones(len(x), bool))


def _map(
    findings: Findings, s: Memorization, data: Dataset, good: dict[str, tuple[Ints, Ints, Bools]]
) -> Ints:
    """Return the value of every key (K,): the file's map, or what the rows show of it.

    Invariant 18, of the map itself: it covers every key, is one-to-one and in range.
    """
    values = np.full(s.keys, _NO_VALUE)
    if data.kv_keys is not None and data.kv_values is not None:
        keys = data.kv_keys
        covered = np.array_equal(np.sort(keys), np.arange(s.keys))
        same = len(keys) == len(data.kv_values)
        if findings.holds(
            18,
            "",
            covered and same,
            f"the map has {len(np.unique(keys))} different keys in {len(keys)} and "
            f"{len(data.kv_values)} values, wanted each of 0..{s.keys - 1} once",
        ):
            values[keys] = data.kv_values
    else:
        findings.notes.append("no kv_keys and kv_values: the map is what the rows show of it")
    if (values == _NO_VALUE).all():
        for x, y, rows in good.values():
            key, value = x[rows, ::2], y[rows, 1::2]
            known = (key < s.keys) & (value != IGNORED)
            key, value = key[known], value[known]
            values[key] = np.where(values[key] == _NO_VALUE, value, values[key])
    shown = values[values != _NO_VALUE]
    unique, times = np.unique(shown, return_counts=True)
    outside = (unique < s.keys) | (unique >= s.ordinary)
    problem = ""
    if (times > 1).any():
        problem = f"value {unique[times > 1][0]} belongs to {times.max()} keys"
    elif outside.any():
        problem = f"value {unique[outside][0]}"
    expected = f"wanted one key for each value of {s.keys}..{s.ordinary - 1}"
    findings.holds(18, "", not problem, f"{problem}; {expected}")
    return values


def _targets(
    findings: Findings, s: Memorization, split: str, x: Ints, y: Ints, values: Ints, good: Bools
) -> Bools:
    """Invariant 18, of the targets."""
    key = np.where(good[:, None], x[:, ::2], 0)
    plain = key < s.keys
    expected = np.full(y.shape, IGNORED)
    expected[:, 1::2] = np.where(plain, values[np.where(plain, key, 0)], IGNORED)
    wrong = y != expected

    def say(row: int) -> str:
        at = first_place(wrong[row])
        return f"target {y[row, at]} at {at}, wanted {expected[row, at]}"

    return findings.rows(18, split, wrong.any(1), say, good)


def equal_memorization_rows(s: Memorization) -> float:
    """Return about how likely two rows are equal; one pair of a row is never noise."""
    pair = chance_of_pair(1 / s.keys, s.frac_noise, s.noise_vocab**2)
    return float(pair ** (s.seq_len // 2 - 1) / s.keys)
