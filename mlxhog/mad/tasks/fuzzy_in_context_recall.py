"""Fuzzy in-context recall: keys and values are motifs of one to a few tokens, padded on the left.

The queried pair is inserted at a random position, unless its key is already there. The position of
the reference may be beyond the last pair, so a few per cent of its sequences end with a query
without an answer; here the pair is inserted at the last possible place. `fuzzy_compat` restores
the reference's behaviour.

Source: Poli et al. 2024, arXiv:2403.17844. Tokens of a motif are drawn without replacement one
after the other; the reference lists every permutation, 250,000 of them per sequence at V 128.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Failure, Findings, chance_of_pair
from mlxhog.mad.tasks.in_context_recall import first_shown
from mlxhog.mad.tasks.task import (
    IGNORED,
    QUERY_HELP,
    Fixed,
    Ints,
    NoiseSettings,
    Rows,
    TaskType,
    too_small,
)


@dataclass(frozen=True, kw_only=True)
class FuzzyInContextRecall(NoiseSettings):
    """Settings; keys are made of 0 .. K-1, values of K .. R-1, noise of R .. R+N-1."""

    task: ClassVar[str] = "fuzzy-in-context-recall"

    k_motif: int = option(3, "most tokens of a key", low=1, aliases=("k_motif_size",))
    v_motif: int = option(3, "most tokens of a value", low=1, aliases=("v_motif_size",))
    multi_query: bool = option(True, QUERY_HELP)
    fuzzy_compat: bool = option(
        False, "compat: as in the reference, some final queries have no answer"
    )

    @property
    def ordinary(self) -> int:
        """R, the number of tokens of keys and values."""
        return self.vocab - (1 if self.multi_query else 2) - self.noise_vocab

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    @property
    def pad(self) -> int:
        """The token on the left; the copy marker, if there is one, is the next token."""
        return self.vocab - (1 if self.multi_query else 2)

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return self.k_motif + self.v_motif

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from super().broken_rules()
        special = self.vocab - self.ordinary
        least = max(2 * self.k_motif, 2 * self.v_motif - 1) + special
        why = (
            f"a key of {self.k_motif} and a value of {self.v_motif} different tokens, from a half "
            f"of the vocabulary each, beside {special} special ones"
        )
        yield from too_small("vocab", self.vocab, why, least)
        why = f"a pair of {self.longest} tokens must fit in twice"
        yield from too_small("seq_len", self.seq_len, why, 2 * self.longest + 1)
        if self.vocab >= least and (self.keys + 1) ** self.k_motif >= 2**63:
            most = int(63 / np.log2(self.keys + 1))
            yield f"k_motif is {self.k_motif}; keys are numbered in 63 bits: at most {most}"


@dataclass(frozen=True)
class _MotifPairs:
    """Drawn pairs: sizes (n, P), tokens (largest size, n, P); the first `size` tokens count."""

    k_size: Ints
    k: Ints
    v_size: Ints
    v: Ints


def draw(
    s: FuzzyInContextRecall,
    rng: np.random.Generator,
    n: int,
    *,
    train: bool,
    dense: bool,
    fixed: Fixed,
) -> Rows:
    """Draw n rows; targets are dense, or only the predictable ones."""
    shortest = 2 if train else s.k_motif + 1
    count = -(-(s.seq_len - shortest - s.longest) // shortest)  # the most pairs of a row
    asked = _draw_pairs(s, rng, (n, 1), train)
    pairs = _draw_pairs(s, rng, (n, count), train)
    noisy = rng.random((n, count)) < s.frac_noise if s.frac_noise else np.zeros((n, count), bool)
    code, asked_code = _codes(s, pairs), _codes(s, asked)
    code = np.where(noisy, -1 - np.arange(count), code)  # noise is never shown again
    first, is_asked = first_shown(code), code == asked_code
    row = np.arange(n)[:, None]
    v_size = np.where(is_asked, asked.v_size, pairs.v_size[row, first])
    v = np.where(is_asked, asked.v, pairs.v[:, row, first])
    pairs = _MotifPairs(pairs.k_size, pairs.k, v_size, v)

    length, asked_length = pairs.k_size + v_size, asked.k_size + asked.v_size
    start = np.cumsum(length, axis=1) - length
    limit = s.seq_len - asked_length - s.longest  # pairs begin before it
    at, put_in = _place_of_asked(s, rng, start, limit, asked_length, is_asked)
    after = put_in & (np.arange(count) >= at)
    start = start + after * asked_length
    fits = start < limit
    total = (length * fits).sum(1, keepdims=True) + put_in * asked_length

    whole = np.full((n, s.seq_len + 1), s.pad, np.int32)
    scored = np.zeros(whole.shape, bool)
    begin = s.seq_len + 1 - asked_length - (not s.multi_query) - total
    shown_before = (first < np.arange(count)) | (is_asked & after)
    _write(s, rng, whole, scored, begin + start, fits, pairs, noisy, shown_before & s.multi_query)
    there, nothing = np.ones((n, 1), bool), np.zeros((n, 1), bool)
    place = begin + np.take_along_axis(start, np.minimum(at, count - 1), 1) - asked_length
    _write(s, rng, whole, scored, place, put_in, asked, nothing, nothing)
    end = s.seq_len + 1 - asked_length
    if not s.multi_query:
        whole[row, end - 1] = s.vocab - 1
    _write(s, rng, whole, scored, end, there, asked, nothing, there)
    x, y = whole[:, :-1], whole[:, 1:]
    return (x, y) if dense else (x, np.where(scored[:, 1:], y, IGNORED))


def _draw_pairs(
    s: FuzzyInContextRecall, rng: np.random.Generator, shape: tuple[int, int], train: bool
) -> _MotifPairs:
    k_size = rng.integers(1 if train else s.k_motif, s.k_motif + 1, shape, dtype=np.int32)
    v_size = rng.integers(1, s.v_motif + 1, shape, dtype=np.int32)
    k = _distinct(rng, shape, s.k_motif, s.keys)
    v = _distinct(rng, shape, s.v_motif, s.ordinary - s.keys) + s.keys
    return _MotifPairs(k_size, k, v_size, v)


def _distinct(
    rng: np.random.Generator, shape: tuple[int, int], size: int, alphabet: int
) -> NDArray[np.int32]:
    """Draw `size` different numbers below `alphabet`, in order, for every place of `shape`."""
    task_rows = np.empty((size, *shape), np.int32)
    smaller_first: list[NDArray[np.int32]] = []
    for number in range(size):
        token = rng.integers(0, alphabet - number, shape, dtype=np.int32)
        # The token-th of the remaining numbers: skip the others, from the smallest up.
        for other in smaller_first:
            token += token >= other
        task_rows[number] = largest = token
        for place, other in enumerate(smaller_first):
            smaller_first[place] = np.minimum(other, largest)
            largest = np.maximum(other, largest)
        smaller_first.append(largest)
    return task_rows


def _codes(s: FuzzyInContextRecall, pairs: _MotifPairs) -> NDArray[np.int64]:
    """Number the keys: equal keys, equal numbers from 0."""
    code = np.zeros(pairs.k_size.shape, np.int64)
    for number in range(s.k_motif):
        digit = np.where(number < pairs.k_size, pairs.k[number] + 1, 0)
        code = code * (s.keys + 1) + digit
    return code


def _place_of_asked(
    s: FuzzyInContextRecall,
    rng: np.random.Generator,
    start: Ints,
    limit: Ints,
    asked_length: Ints,
    is_asked: Bools,
) -> tuple[Ints, Bools]:
    """Return the pair before which the queried one is inserted, and whether it is."""
    count = start.shape[1]
    position = rng.integers(0, s.seq_len - 2 * asked_length)
    if not s.fuzzy_compat:
        position = np.minimum(position, limit - s.longest)
    reached = start >= position
    at = np.where(reached.any(1), reached.argmax(1), count)[:, None]
    shown = (is_asked & (np.arange(count) < at)).any(1, keepdims=True)
    begin = np.where(at < count, np.take_along_axis(start, np.minimum(at, count - 1), 1), limit)
    return at, ~shown & (begin < limit)


def _write(
    s: FuzzyInContextRecall,
    rng: np.random.Generator,
    whole: Ints,
    scored: Bools,
    start: Ints,
    fits: Bools,
    pairs: _MotifPairs,
    noisy: Bools,
    shown_before: Bools,
) -> None:
    """Write the pairs that fit at their starts, and mark the scored values."""
    motifs = [(pairs.k_size, pairs.k, 0 * pairs.k_size, np.zeros_like(shown_before))]
    motifs.append((pairs.v_size, pairs.v, pairs.k_size, shown_before))
    for size, tokens, offset, marked in motifs:
        for number in range(len(tokens)):
            row, pair = np.nonzero(fits & (number < size))
            to = start[row, pair] + offset[row, pair] + number
            token = tokens[number, row, pair]
            if s.frac_noise:
                other = rng.integers(s.ordinary, s.ordinary + s.noise_vocab, len(row))
                token = np.where(noisy[row, pair], other, token)
            whole[row, to] = token
            scored[row, to] = marked[row, pair]


Motif = tuple[int, ...]

_MAY_FOLLOW = {
    "key": ("value", "noise", "the copy marker"),
    "value": ("key",),
    "noise": ("value",),
    "the copy marker": ("value", "noise"),
    "padding": (),
}


class BrokenRule(Exception):
    """A row breaks a rule, with its number."""

    def __init__(self, rule: int, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class MotifPair:
    """A key and a value, and the position of the value in the whole sequence."""

    key: Motif
    value: Motif
    value_at: int


def check(s: FuzzyInContextRecall, findings: Findings, data: Dataset) -> None:
    """Apply invariants 8 to 12, and the bounds.

    A final query without an answer is a failure in our rows, and a note in others.
    """
    ours = str(data.meta.get("generator", "")).startswith("mlxhog") and not s.fuzzy_compat
    for split, (x, y) in data.splits().items():
        if findings.has_width(8, split, x, s.seq_len):
            _check_rows(s, findings, split, x, y, strict=ours)
    fewest = max(1, math.ceil((s.seq_len - 2 * s.longest) / s.longest))
    key, value = _chance(s.keys, s.k_motif), _chance(s.ordinary - s.keys, s.v_motif)
    pair = chance_of_pair(key, s.frac_noise, float(s.noise_vocab) ** 2)
    # An upper estimate: the fewest pairs, the same keys.
    findings.duplicates(data, float(pair**fewest * value))


def _chance(alphabet: int, most: int) -> float:
    """Return the probability of two equal motifs of 1 to `most` different tokens."""
    return sum(1 / math.perm(alphabet, size) for size in range(1, most + 1)) / most**2


def _check_rows(
    s: FuzzyInContextRecall, findings: Findings, split: str, x: Ints, y: Ints, *, strict: bool
) -> None:
    failures: dict[int, Failure] = {}
    parsed, unknown = [], []
    for number, (row_x, row_y) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        try:
            pairs = _read_row(s, split, row_x, row_y)
            parsed.append(pairs)
            if pairs[-1].key not in {pair.key for pair in pairs[:-1]}:
                unknown.append(number)
                if strict:
                    raise BrokenRule(12, f"the final key {pairs[-1].key} was not shown before")
        except BrokenRule as broken:
            first = failures.get(broken.rule, Failure(broken.rule, split, number, 0, str(broken)))
            failures[broken.rule] = Failure(
                first.rule, split, first.row, first.rows + 1, first.message
            )
    findings.checked += [rule for rule in (8, 9, 10, 11, 12) if rule not in findings.checked]
    findings.failures += [failures[rule] for rule in sorted(failures)]
    if unknown and not strict:
        findings.notes.append(
            f"{split}: {len(unknown) / len(x):.1%} of the final queries have no answer, "
            f"row {unknown[0]} first; in the reference 1 to 6 %"
        )
    if len(x) >= ENOUGH_ROWS and parsed:
        _check_bounds(s, findings, split, parsed)


def _read_row(s: FuzzyInContextRecall, split: str, x: list[int], y: list[int]) -> list[MotifPair]:
    """Read one row.

    Raises:
        BrokenRule: it breaks a rule.
    """
    _check_tokens(s, x, y)
    if y[-1] == IGNORED:
        raise BrokenRule(
            11 if split == "train" else 12, "no target at the end, expected the last value"
        )
    whole = [*x, y[-1]]
    pairs = _parse(s, whole)
    for pair in pairs:
        _check_motif(pair.key, s.k_motif if split != "train" else 1, s.k_motif, "key")
        _check_motif(pair.value, 1, s.v_motif, "value")
    values: dict[Motif, Motif] = {}
    for pair in pairs:
        if values.setdefault(pair.key, pair.value) != pair.value:
            before = values[pair.key]
            raise BrokenRule(11, f"key {pair.key} has values {before} and {pair.value}")
    if split == "train":
        _check_dense(whole, y)
    else:
        _check_scored(s, y, pairs)
    return pairs


def _check_tokens(s: FuzzyInContextRecall, x: list[int], y: list[int]) -> None:
    """Invariant 8."""
    if min(x) < 0 or max(x) >= s.vocab:
        at = next(at for at, token in enumerate(x) if not 0 <= token < s.vocab)
        raise BrokenRule(8, f"token {x[at]} at {at}, expected 0..{s.vocab - 1}")
    strange = {*y} - {*range(s.vocab), IGNORED}
    if strange:
        at = next(at for at, token in enumerate(y) if token in strange)
        raise BrokenRule(8, f"target {y[at]} at {at}, expected 0..{s.vocab - 1} or {IGNORED}")


def _parse(s: FuzzyInContextRecall, whole: list[int]) -> list[MotifPair]:
    """Invariant 9: padding on the left, then keys and values by turns."""
    pads = next((at for at, token in enumerate(whole) if token != s.pad), len(whole))
    if not pads:
        raise BrokenRule(9, f"the row begins with {whole[0]}, expected padding {s.pad}")
    kinds = _kinds(s)
    runs, at = [], pads
    for name, run in groupby(whole[pads:], kinds.__getitem__):
        runs.append((name, at, tuple(run)))
        at += len(runs[-1][2])
    pairs, before = [], "value"
    for number, (name, at, tokens) in enumerate(runs):
        if before not in _MAY_FOLLOW[name] or (name == "noise" and not s.frac_noise):
            raise BrokenRule(9, f"{name} after {before} at {at}, expected keys and values by turns")
        if name == "value":
            pairs.append(MotifPair(runs[number - 1][2], tokens, at))
        before = name
    if before != "value":
        raise BrokenRule(9, f"the row ends with {before}, expected a value")
    marked = [number for number, (name, *_) in enumerate(runs) if name == "the copy marker"]
    if marked != ([] if s.multi_query else [len(runs) - 3]):
        raise BrokenRule(9, f"{len(marked)} copy markers, expected one before the last pair")
    return pairs


@lru_cache
def _kinds(s: FuzzyInContextRecall) -> list[str]:
    """Return the kind of each token."""
    kinds = ["key"] * s.keys + ["value"] * (s.ordinary - s.keys) + ["noise"] * s.noise_vocab
    return [*kinds, "padding", "the copy marker"][: s.vocab]


def _check_motif(motif: Motif, least: int, most: int, name: str) -> None:
    """Invariant 10."""
    if not least <= len(motif) <= most:
        expected = f"{most}" if least == most else f"{least} to {most}"
        raise BrokenRule(10, f"{name} {motif} has {len(motif)} tokens, expected {expected}")
    if len(set(motif)) != len(motif):
        raise BrokenRule(10, f"{name} {motif} has a token twice")


def _check_dense(whole: list[int], y: list[int]) -> None:
    """Invariant 11, of training rows."""
    if y != whole[1:]:
        at = next(at for at, got in enumerate(y) if got != whole[at + 1])
        raise BrokenRule(11, f"target {y[at]} at {at}, expected the next token, {whole[at + 1]}")


def _check_scored(s: FuzzyInContextRecall, y: list[int], pairs: list[MotifPair]) -> None:
    """Invariant 12: values of repeated keys, and always the last."""
    expected = [IGNORED] * len(y)
    keys_before: set[Motif] = set()
    for pair in pairs:
        last = pair is pairs[-1]
        if last or (s.multi_query and pair.key in keys_before):
            for offset, token in enumerate(pair.value):
                expected[pair.value_at + offset - 1] = token
        keys_before.add(pair.key)
    if y != expected:
        at = next(at for at, got in enumerate(y) if got != expected[at])
        raise BrokenRule(12, f"target {y[at]} at {at}, expected {expected[at]}")


def _check_bounds(
    s: FuzzyInContextRecall, findings: Findings, split: str, parsed: list[list[MotifPair]]
) -> None:
    keys, values = [], []
    for pairs in parsed:
        keys_before: set[Motif] = set()
        for pair in pairs[:-1]:
            keys.append(pair.key)
            if pair.key not in keys_before:
                values.append(pair.value)
            keys_before.add(pair.key)
    for name, motifs, low, high, most in (
        ("key", keys, 0, s.keys, s.k_motif),
        ("value", values, s.keys, s.ordinary, s.v_motif),
    ):
        tokens = np.array([token for motif in motifs for token in motif])
        findings.uniform(f"uniform {name} tokens", split, tokens, low, high)
        if split == "train" or name == "value":
            lengths = np.array([len(motif) for motif in motifs])
            for length in range(1, most + 1):
                rule = f"{name} motifs of length {length}"
                findings.share(rule, split, lengths == length, 1 / most, 1 / most)


FUZZY_IN_CONTEXT_RECALL = TaskType(
    "fuzzy-in-context-recall",
    "FR",
    FuzzyInContextRecall,
    draw,
    check=check,
    about="in-context recall with keys and values of one to a few tokens each",
    sudden=True,
)
