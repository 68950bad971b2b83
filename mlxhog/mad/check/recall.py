"""Invariants 1 to 7: in-context recall, noisy or not, with one query or many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check.findings import (
    ENOUGH_ROWS,
    RARE,
    Bools,
    Findings,
    chance_of_pair,
    check_mean,
    check_share,
    check_uniform,
    first_place,
)
from mlxhog.mad.tasks.in_context_recall import InContextRecall, first_shown
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class _Pairs:
    """Keys and values (n, T/2), the asked one last; `first` is where a key was shown first."""

    key: Ints
    value: Ints
    noisy: Bools
    first: Ints

    @property
    def again(self) -> Bools:
        """Whether a pair's key was shown before."""
        return ~self.noisy & (self.first < np.arange(self.key.shape[1]))


def check(findings: Findings, s: InContextRecall, split: str, x: Ints, y: Ints) -> None:
    """Apply invariants 1 to 7, and the bounds, to the rows of a split."""
    if not findings.holds(
        2,
        split,
        x.shape[1] == s.length,
        f"rows have {x.shape[1]} tokens, wanted {s.length} "
        f"({'T - 1, many queries' if s.multi_query else 'T, one query'})",
    ):
        return
    good = _tokens(findings, s, split, x, y)
    pairs = _pairs(s, x, y)
    good = _structure(findings, s, split, pairs, good)
    wrong = pairs.value != np.take_along_axis(pairs.value, pairs.first, 1)
    wrong &= ~pairs.noisy
    good = findings.rows(4, split, wrong.any(1), lambda row: _two_values(pairs, wrong, row), good)
    _maps_differ(findings, s, split, pairs, good)
    dense = np.concatenate([x[:, 1:], pairs.value[:, -1:]], axis=1)
    if split == "train":
        wrong = y != dense
        findings.rows(5, split, wrong.any(1), lambda row: _not_next(dense, y, row), good)
    else:
        good = _scoring(findings, s, split, pairs, dense, y, good)
    if len(x) >= ENOUGH_ROWS and good.any():
        _bounds(findings, s, split, pairs, y, good)


def _tokens(findings: Findings, s: InContextRecall, split: str, x: Ints, y: Ints) -> Bools:
    """Invariant 1: tokens exist, and the copy marker stands in its one place alone."""
    strange: Bools = (x < 0) | (x >= s.vocab)
    strange |= (y != IGNORED) & ((y < 0) | (y >= s.vocab))
    if not s.multi_query:
        marker = np.zeros(x.shape[1], bool)
        marker[-2] = True
        strange |= (x == s.vocab - 1) != marker

    def say(row: int) -> str:
        at = first_place(strange[row])
        place = "" if s.multi_query else f", and {s.vocab - 1} at {x.shape[1] - 2} alone"
        expected = f"tokens 0..{s.vocab - 1}{place}"
        return f"input {x[row, at]} and target {y[row, at]} at {at}, wanted {expected}"

    return findings.rows(1, split, np.any(strange, axis=1), say, np.ones(len(x), bool))


def _pairs(s: InContextRecall, x: Ints, y: Ints) -> _Pairs:
    """Cut sequences into pairs; a last value that is not scored is the one its key had before."""
    tokens = x if s.multi_query else np.delete(x, -2, axis=1)
    whole = np.concatenate([tokens, y[:, -1:]], axis=1)
    key, value = whole[:, ::2], whole[:, 1::2].copy()
    noisy = (key >= s.ordinary) | (value >= s.ordinary)
    noisy[:, -1] = False
    first = first_shown(np.where(noisy, -1 - np.arange(key.shape[1]), key))
    unknown = value[:, -1] == IGNORED
    value[unknown, -1] = value[unknown, first[unknown, -1]]
    return _Pairs(key, value, noisy, first)


def _structure(
    findings: Findings, s: InContextRecall, split: str, pairs: _Pairs, good: Bools
) -> Bools:
    """Invariant 3: (key, value) or (noise, noise), and the last key was shown."""
    K, R = s.keys, s.ordinary
    plain = (pairs.key >= 0) & (pairs.key < K) & (pairs.value >= K) & (pairs.value < R)
    noise = (pairs.key >= R) & (pairs.value >= R)
    noise[:, -1] = False
    wrong: Bools = ~(plain | noise)
    wrong[:, -1] |= ~pairs.again[:, -1]

    def say(row: int) -> str:
        at = first_place(wrong[row])
        got = f"pair {at} is ({pairs.key[row, at]}, {pairs.value[row, at]})"
        if plain[row, at]:
            return f"{got}, the last, and its key was not shown before"
        other = f" or two of noise {R}..{R + s.noise[0] - 1}" if s.noise[0] else ""
        return f"{got}, wanted a key 0..{K - 1} and a value {K}..{R - 1}{other}"

    return findings.rows(3, split, np.any(wrong, axis=1), say, good)


def _two_values(pairs: _Pairs, wrong: Bools, row: int) -> str:
    at = first_place(wrong[row])
    before = pairs.first[row, at]
    return (
        f"key {pairs.key[row, at]} has value {pairs.value[row, before]} in pair {before} "
        f"and {pairs.value[row, at]} in pair {at}"
    )


def _not_next(dense: Ints, y: Ints, row: int) -> str:
    at = first_place(y[row] != dense[row])
    return f"target {y[row, at]} at {at}, wanted the next token, {dense[row, at]}"


def _maps_differ(
    findings: Findings, s: InContextRecall, split: str, pairs: _Pairs, good: Bools
) -> None:
    """Invariant 4, across sequences: the map is not one for all."""
    shown = good[:, None] & ~pairs.noisy & ~pairs.again
    keys, values = pairs.key[shown], pairs.value[shown]
    n_maps = len(np.unique(keys * s.vocab + values))
    n_keys = len(np.unique(keys))
    # With one map for all, nothing else is possible; so many draws do not agree by chance.
    likely = (s.ordinary - s.keys) ** -float(min(len(keys) - n_keys, 60))
    if likely < RARE:
        findings.holds(
            4, split, n_maps > n_keys, f"all {good.sum():,} sequences have one and the same map"
        )


def _scoring(
    findings: Findings,
    s: InContextRecall,
    split: str,
    pairs: _Pairs,
    dense: Ints,
    y: Ints,
    good: Bools,
) -> Bools:
    """Invariants 6 and 7: what is scored, and that it stands at its key."""
    expected = np.zeros(y.shape, bool)
    if s.multi_query:
        expected[:, ::2] = pairs.again
    expected[:, -1] = True
    scored = y != IGNORED
    differs = (scored != expected).any(1)
    moved = differs & _moved(scored, expected)
    value_wrong = scored & expected & (y != dense)
    good = findings.rows(
        7,
        split,
        moved | value_wrong.any(1),
        lambda row: _not_at_key(dense, y, value_wrong, row),
        good,
    )

    def say(row: int) -> str:
        at = first_place(scored[row] != expected[row])
        why = "its key was seen before" if expected[row, at] else "nothing there can be known"
        got = f"target {y[row, at]}" if scored[row, at] else "no target"
        return f"{got} at {at}, but {why}" if s.multi_query else f"{got} at {at}, want the last"

    return findings.rows(6, split, differs, say, good)


def _moved(scored: Bools, expected: Bools) -> Bools:
    """Whether rows (n, length) are scored one position beside where they should be."""
    right = (scored[:, 1:] == expected[:, :-1]).all(1) & ~scored[:, 0]
    left = (scored[:, :-1] == expected[:, 1:]).all(1) & ~scored[:, -1]
    moved: Bools = right | left
    return moved


def _not_at_key(dense: Ints, y: Ints, value_wrong: Bools, row: int) -> str:
    if not value_wrong[row].any():
        return "targets stand one position beside the keys they belong to"
    at = first_place(value_wrong[row])
    return f"target {y[row, at]} at {at}, wanted {dense[row, at]}, the value of the key there"


def _bounds(
    findings: Findings, s: InContextRecall, split: str, pairs: _Pairs, y: Ints, good: Bools
) -> None:
    key, noisy = pairs.key[good, :-1], pairs.noisy[good, :-1]
    new = ~noisy & ~pairs.again[good, :-1]
    check_uniform(findings, "uniform keys", split, key[~noisy], 0, s.keys)
    values = pairs.value[good, :-1][new]
    check_uniform(findings, "uniform values", split, values, s.keys, s.ordinary)
    share = s.noise[1]
    if share:
        fewest = share * (1 - 1 / s.pairs)  # where one pair is never noise
        count = int(noisy.sum())
        check_share(findings, "noise share", split, count, noisy.size, fewest, share)
    elif split != "train" and s.multi_query:
        n, K = s.pairs, s.keys
        expected = n - K * (1 - (1 - 1 / K) ** n) + 1
        scored = (y[good] != IGNORED).sum(1)
        check_mean(findings, "scored tokens per row", split, scored, expected)


def chance_of_equal_rows(s: InContextRecall) -> float:
    """Return about how likely two rows are equal: the same keys, and one value at least.

    One pair of a row is never noise.
    """
    noise_vocab, share = s.noise
    pair = chance_of_pair(1 / s.keys, share, noise_vocab**2)
    return pair ** (s.pairs - 1) / s.keys / (s.ordinary - s.keys)
