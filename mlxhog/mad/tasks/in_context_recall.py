"""In-context recall: pairs of key and value under a new map in every sequence.

T/2 - 1 pairs are drawn, and a last one queries a key among them. A single query has a marker before
it. With pairs of noise the task is noisy in-context recall.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import (
    ENOUGH_ROWS,
    RARE,
    Bools,
    Findings,
    chance_of_pair,
    first_place,
)
from mlxhog.mad.tasks.task import (
    IGNORED,
    QUERY_HELP,
    Fixed,
    Ints,
    NoiseSettings,
    Rows,
    Settings,
    TaskType,
    frac_noise,
    noise_vocab,
    too_small,
    vocab,
)


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Settings):
    """Settings; keys are 0 .. K-1, values K .. R-1, noise R .. R+N-1."""

    task: ClassVar[str] = "in-context-recall"

    multi_query: bool = option(True, QUERY_HELP)

    @property
    def noise(self) -> tuple[int, float]:
        """N, and the share of noise pairs."""
        return 0, 0.0

    @property
    def ordinary(self) -> int:
        """R, the number of keys and values."""
        return self.vocab - self.noise[0] - (not self.multi_query)

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    @property
    def pairs(self) -> int:
        """Pairs before the last one."""
        return self.seq_len // 2 - 1

    @property
    def length(self) -> int:
        """Tokens of a row: a whole sequence without its last token."""
        return self.seq_len - 1 if self.multi_query else self.seq_len

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        if self.seq_len % 2 or self.seq_len < 4:
            yield (
                f"seq_len is {self.seq_len}; a sequence is pairs of key and value, two or more: "
                "an even number, at least 4"
            )
        special = self.noise[0] + (not self.multi_query)
        beside = f" beside {special} for noise and the copy marker" if special else ""
        why = f"recall needs a key and a value{beside}"
        yield from too_small("vocab", self.vocab, why, 2 + special)


@dataclass(frozen=True, kw_only=True)
class NoisyInContextRecall(InContextRecall, NoiseSettings):
    """Settings of the variant with noise between the pairs."""

    task: ClassVar[str] = "noisy-in-context-recall"

    vocab: int = vocab(32)
    noise_vocab: int = noise_vocab(16)
    frac_noise: float = frac_noise(0.2)

    @property
    def noise(self) -> tuple[int, float]:
        """N, and the share of noise pairs."""
        return self.noise_vocab, self.frac_noise

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        yield from super().broken_rules()
        yield from NoiseSettings.broken_rules(self)


def draw(
    s: InContextRecall, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; targets are dense, or only the predictable ones."""
    K, R, pairs = s.keys, s.ordinary, s.pairs
    row = np.arange(n)[:, None]
    key = rng.integers(0, K, (n, pairs), dtype=np.int32)
    # A map of all K keys has the same distribution as a draw for each new key.
    values = rng.integers(K, R, (n, K), dtype=np.int32)
    whole = np.empty((n, s.length + 1), np.int32)
    whole[:, 0 : 2 * pairs : 2] = key
    whole[:, 1 : 2 * pairs : 2] = values[row, key]
    noisy = _noise(s, rng, n)
    if noisy is not None:
        key = np.where(noisy, K, key)  # one more column, for no key
        N = s.noise[0]
        for at in (0, 1):
            tokens = rng.integers(R, R + N, (n, pairs), dtype=np.int32)
            part = whole[:, at : 2 * pairs : 2]
            part[...] = np.where(noisy, tokens, part)
    probe = _asked(rng, key, K)
    if not s.multi_query:
        whole[:, -3] = s.vocab - 1
    whole[:, -2] = probe
    whole[:, -1] = values[row[:, 0], probe]
    x, y = whole[:, :-1], whole[:, 1:]
    if dense:
        return x, y
    scored = np.zeros(y.shape, bool)
    if s.multi_query:
        scored[:, 0 : 2 * pairs : 2] = (first_shown(key) < np.arange(pairs)) & (key < K)
    scored[:, -1] = True
    return x, np.where(scored, y, IGNORED)


def _noise(s: InContextRecall, rng: np.random.Generator, n: int) -> NDArray[np.bool_] | None:
    """Choose the noise pairs; one pair of every row is never noise."""
    share = s.noise[1]
    if share == 0:
        return None
    noisy = rng.random((n, s.pairs)) < share
    noisy[np.arange(n), rng.integers(0, s.pairs, n)] = False
    return noisy


def _asked(rng: np.random.Generator, key: Ints, K: int) -> Ints:
    """Choose one of a row's keys uniformly; `key` is (n, pairs), where K is no key."""
    n = len(key)
    shown = np.zeros((n, K + 1), bool)
    shown[np.arange(n)[:, None], key] = True
    rank = np.cumsum(shown[:, :K], axis=1, dtype=np.int32)
    chosen = rng.integers(1, rank[:, -1] + 1)
    probe: Ints = np.argmax(rank == chosen[:, None], axis=1)
    return probe


def dense_loss_floor(settings: InContextRecall) -> float | None:
    """Return the mean entropy of a dense target in nats; None without a known formula.

    Only keys, and values of new keys, are unpredictable:
    [ (T/2 - 1) ln K + E ln|values| ] / (T - 1), with E the expected number of different keys among
    n = T/2 - 1 draws. A lower loss on held-out rows means that they leaked.
    """
    if settings.noise[1] or not settings.multi_query:
        return None
    K, n = settings.keys, settings.pairs
    different = K * (1 - (1 - 1 / K) ** n)
    nats = n * math.log(K) + different * math.log(settings.ordinary - K)
    return nats / (settings.seq_len - 1)


def first_shown(keys: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return for every key (n, pairs) the position of the first equal key in its row."""
    n, pairs = keys.shape
    row = np.arange(n)[:, None]
    order = np.argsort(keys, axis=1, kind="stable")  # equal keys stay in the order of positions
    sorted_keys = keys[row, order]
    begins = np.ones((n, pairs), bool)
    begins[:, 1:] = sorted_keys[:, 1:] != sorted_keys[:, :-1]
    # Positions rise within a run of equal keys, not from run to run: carry the run's index.
    run_start = np.maximum.accumulate(np.where(begins, np.arange(pairs), 0), axis=1)
    first = np.empty((n, pairs), np.int64)
    first[row, order] = order[row, run_start]
    return first


@dataclass(frozen=True)
class _KeyValuePairs:
    """Keys and values (n, T/2), the queried one last; `first` is the first place of each key."""

    key: Ints
    value: Ints
    noisy: Bools
    first: Ints

    @property
    def again(self) -> Bools:
        """Whether a pair's key is repeated."""
        return ~self.noisy & (self.first < np.arange(self.key.shape[1]))


def check(s: InContextRecall, findings: Findings, data: Dataset) -> None:
    """Apply invariants 1 to 7, and the bounds."""
    queries = "T - 1, many queries" if s.multi_query else "T, one query"
    for split, (x, y) in data.splits().items():
        if findings.has_width(2, split, x, s.length, f" ({queries})"):
            _check_rows(s, findings, split, x, y)
    noise_vocab, share = s.noise
    pair = chance_of_pair(1 / s.keys, share, noise_vocab**2)
    # The same keys and at least one value; one pair of a row is never noise.
    chance = pair ** (s.pairs - 1) / s.keys / (s.ordinary - s.keys)
    findings.duplicates(data, chance)


def _check_rows(s: InContextRecall, findings: Findings, split: str, x: Ints, y: Ints) -> None:
    good = _check_tokens(s, findings, split, x, y)
    pairs = _cut(s, x, y)
    good = _check_structure(s, findings, split, pairs, good)
    wrong = pairs.value != np.take_along_axis(pairs.value, pairs.first, 1)
    wrong &= ~pairs.noisy
    good = findings.rows(4, split, wrong.any(1), lambda row: _two_values(pairs, wrong, row), good)
    _check_maps_differ(s, findings, split, pairs, good)
    dense = np.concatenate([x[:, 1:], pairs.value[:, -1:]], axis=1)
    if split == "train":
        wrong = y != dense
        findings.rows(5, split, wrong.any(1), lambda row: _not_next(dense, y, row), good)
    else:
        good = _check_scoring(s, findings, split, pairs, dense, y, good)
    if len(x) >= ENOUGH_ROWS and good.any():
        _check_bounds(s, findings, split, pairs, y, good)


def _check_tokens(s: InContextRecall, findings: Findings, split: str, x: Ints, y: Ints) -> Bools:
    """Invariant 1: tokens exist, and the copy marker is only in its place."""
    strange: Bools = (x < 0) | (x >= s.vocab)
    strange |= (y != IGNORED) & ((y < 0) | (y >= s.vocab))
    if not s.multi_query:
        marker = np.zeros(x.shape[1], bool)
        marker[-2] = True
        strange |= (x == s.vocab - 1) != marker

    def say(row: int) -> str:
        at = first_place(strange[row])
        place = "" if s.multi_query else f", and {s.vocab - 1} only at {x.shape[1] - 2}"
        expected = f"tokens 0..{s.vocab - 1}{place}"
        return f"input {x[row, at]} and target {y[row, at]} at {at}, expected {expected}"

    return findings.rows(1, split, np.any(strange, axis=1), say, np.ones(len(x), bool))


def _cut(s: InContextRecall, x: Ints, y: Ints) -> _KeyValuePairs:
    """Cut sequences into pairs; an unscored last value is the earlier one of its key."""
    tokens = x if s.multi_query else np.delete(x, -2, axis=1)
    whole = np.concatenate([tokens, y[:, -1:]], axis=1)
    key, value = whole[:, ::2], whole[:, 1::2].copy()
    noisy = (key >= s.ordinary) | (value >= s.ordinary)
    noisy[:, -1] = False
    first = first_shown(np.where(noisy, -1 - np.arange(key.shape[1]), key))
    unknown = value[:, -1] == IGNORED
    value[unknown, -1] = value[unknown, first[unknown, -1]]
    return _KeyValuePairs(key, value, noisy, first)


def _check_structure(
    s: InContextRecall, findings: Findings, split: str, pairs: _KeyValuePairs, good: Bools
) -> Bools:
    """Invariant 3: (key, value) or (noise, noise), and the last key is repeated."""
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
        return f"{got}, expected a key 0..{K - 1} and a value {K}..{R - 1}{other}"

    return findings.rows(3, split, np.any(wrong, axis=1), say, good)


def _two_values(pairs: _KeyValuePairs, wrong: Bools, row: int) -> str:
    at = first_place(wrong[row])
    before = pairs.first[row, at]
    return (
        f"key {pairs.key[row, at]} has value {pairs.value[row, before]} in pair {before} "
        f"and {pairs.value[row, at]} in pair {at}"
    )


def _not_next(dense: Ints, y: Ints, row: int) -> str:
    at = first_place(y[row] != dense[row])
    return f"target {y[row, at]} at {at}, expected the next token, {dense[row, at]}"


def _check_maps_differ(
    s: InContextRecall, findings: Findings, split: str, pairs: _KeyValuePairs, good: Bools
) -> None:
    """Invariant 4, across sequences: the map is not one for all."""
    shown = good[:, None] & ~pairs.noisy & ~pairs.again
    keys, values = pairs.key[shown], pairs.value[shown]
    n_maps = len(np.unique(keys * s.vocab + values))
    n_keys = len(np.unique(keys))
    # With one map the counts are equal; enough draws are never equal by chance.
    likely = (s.ordinary - s.keys) ** -float(min(len(keys) - n_keys, 60))
    if likely < RARE:
        findings.holds(4, split, n_maps > n_keys, f"all {good.sum():,} sequences have the same map")


def _check_scoring(
    s: InContextRecall,
    findings: Findings,
    split: str,
    pairs: _KeyValuePairs,
    dense: Ints,
    y: Ints,
    good: Bools,
) -> Bools:
    """Invariants 6 and 7: the scored positions, and their targets."""
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
        why = "its key was seen before" if expected[row, at] else "it is not predictable"
        got = f"target {y[row, at]}" if scored[row, at] else "no target"
        return f"{got} at {at}, " + (f"but {why}" if s.multi_query else "expected the last only")

    return findings.rows(6, split, differs, say, good)


def _moved(scored: Bools, expected: Bools) -> Bools:
    """Whether rows (n, length) are scored one position before or after the right one."""
    one_late = (scored[:, 1:] == expected[:, :-1]).all(1) & ~scored[:, 0]
    one_early = (scored[:, :-1] == expected[:, 1:]).all(1) & ~scored[:, -1]
    moved: Bools = one_late | one_early
    return moved


def _not_at_key(dense: Ints, y: Ints, value_wrong: Bools, row: int) -> str:
    if not value_wrong[row].any():
        return "targets are one position before or after their keys"
    at = first_place(value_wrong[row])
    return f"target {y[row, at]} at {at}, expected {dense[row, at]}, the value of the key there"


def _check_bounds(
    s: InContextRecall, findings: Findings, split: str, pairs: _KeyValuePairs, y: Ints, good: Bools
) -> None:
    key, noisy = pairs.key[good, :-1], pairs.noisy[good, :-1]
    new = ~noisy & ~pairs.again[good, :-1]
    findings.uniform("uniform keys", split, key[~noisy], 0, s.keys)
    values = pairs.value[good, :-1][new]
    findings.uniform("uniform values", split, values, s.keys, s.ordinary)
    share = s.noise[1]
    if share:
        fewest = share * (1 - 1 / s.pairs)  # one pair is never noise
        findings.share("noise share", split, noisy, fewest, share)
    elif split != "train" and s.multi_query:
        n, K = s.pairs, s.keys
        expected = n - K * (1 - (1 - 1 / K) ** n) + 1
        scored = (y[good] != IGNORED).sum(1)
        findings.mean("scored tokens per row", split, scored, expected)


IN_CONTEXT_RECALL = TaskType(
    "in-context-recall",
    "CR",
    InContextRecall,
    draw,
    check=check,
    about="the value of a key from earlier in the sequence",
    sudden=True,
)
NOISY_IN_CONTEXT_RECALL = TaskType(
    "noisy-in-context-recall",
    "NR",
    NoisyInContextRecall,
    draw,
    check=check,
    about="in-context recall among noise tokens",
    sudden=True,
)
