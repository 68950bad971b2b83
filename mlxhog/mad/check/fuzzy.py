"""Invariants 8 to 12: fuzzy in-context recall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check.findings import (
    ENOUGH_ROWS,
    Failure,
    Findings,
    chance_of_pair,
    check_share,
    check_uniform,
)
from mlxhog.mad.tasks.fuzzy_in_context_recall import FuzzyInContextRecall
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]
Motif = tuple[int, ...]


_MAY_FOLLOW = {
    "key": ("value", "noise", "the copy marker"),
    "value": ("key",),
    "noise": ("value",),
    "the copy marker": ("value", "noise"),
    "padding": (),
}


class Broken(Exception):
    """A row breaks a rule; says which and how."""

    def __init__(self, rule: int, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class Pair:
    """A key and a value, and where the value begins in the whole sequence."""

    key: Motif
    value: Motif
    value_at: int


def check(
    findings: Findings, s: FuzzyInContextRecall, split: str, x: Ints, y: Ints, *, strict: bool
) -> None:
    """Apply invariants 8 to 12, and the bounds, to the rows of a split.

    Args:
        findings: takes the results.
        s: settings of the rows.
        split: of the rows.
        x: inputs (n, length).
        y: targets.
        strict: whether a final query that cannot be answered is a failure, or a note.
    """
    if not findings.holds(
        8, split, x.shape[1] == s.seq_len, f"rows have {x.shape[1]} tokens, wanted {s.seq_len}"
    ):
        return
    failures: dict[int, Failure] = {}
    parsed, unknown = [], []
    for number, (row_x, row_y) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        try:
            pairs = _row(s, split, row_x, row_y)
            parsed.append(pairs)
            if pairs[-1].key not in {pair.key for pair in pairs[:-1]}:
                unknown.append(number)
                if strict:
                    raise Broken(12, f"the final key {pairs[-1].key} was not shown before")
        except Broken as broken:
            first = failures.get(broken.rule, Failure(broken.rule, split, number, 0, str(broken)))
            failures[broken.rule] = Failure(
                first.rule, split, first.row, first.rows + 1, first.message
            )
    findings.checked += [rule for rule in (8, 9, 10, 11, 12) if rule not in findings.checked]
    findings.failures += [failures[rule] for rule in sorted(failures)]
    if unknown and not strict:
        findings.notes.append(
            f"{split}: {len(unknown) / len(x):.1%} of the final queries cannot be answered, "
            f"row {unknown[0]} first; the reference makes 1 to 6 %"
        )
    if len(x) >= ENOUGH_ROWS and parsed:
        _bounds(findings, s, split, parsed)


def _row(s: FuzzyInContextRecall, split: str, x: list[int], y: list[int]) -> list[Pair]:
    """Read one row.

    Raises:
        Broken: it breaks a rule.
    """
    _exist(s, x, y)
    if y[-1] == IGNORED:
        raise Broken(11 if split == "train" else 12, "no target at the end, wanted the last value")
    whole = [*x, y[-1]]
    pairs = _parse(s, whole)
    for pair in pairs:
        _motif(pair.key, s.k_motif if split != "train" else 1, s.k_motif, "key")
        _motif(pair.value, 1, s.v_motif, "value")
    values: dict[Motif, Motif] = {}
    for pair in pairs:
        if values.setdefault(pair.key, pair.value) != pair.value:
            before = values[pair.key]
            raise Broken(11, f"key {pair.key} has values {before} and {pair.value}")
    if split == "train":
        _dense(whole, y)
    else:
        _scored(s, whole, y, pairs)
    return pairs


def _exist(s: FuzzyInContextRecall, x: list[int], y: list[int]) -> None:
    """Invariant 8."""
    if min(x) < 0 or max(x) >= s.vocab:
        at = next(at for at, token in enumerate(x) if not 0 <= token < s.vocab)
        raise Broken(8, f"token {x[at]} at {at}, wanted 0..{s.vocab - 1}")
    strange = {*y} - {*range(s.vocab), IGNORED}
    if strange:
        at = next(at for at, token in enumerate(y) if token in strange)
        raise Broken(8, f"target {y[at]} at {at}, wanted 0..{s.vocab - 1} or {IGNORED}")


def _parse(s: FuzzyInContextRecall, whole: list[int]) -> list[Pair]:
    """Invariant 9: padding on the left, then keys and values by turns."""
    pads = next((at for at, token in enumerate(whole) if token != s.pad), len(whole))
    if not pads:
        raise Broken(9, f"the row begins with {whole[0]}, wanted padding {s.pad}")

    kinds = _kinds(s)
    runs, at = [], pads
    for name, run in groupby(whole[pads:], kinds.__getitem__):
        runs.append((name, at, tuple(run)))
        at += len(runs[-1][2])
    pairs, before = [], "value"
    for number, (name, at, tokens) in enumerate(runs):
        if before not in _MAY_FOLLOW[name] or (name == "noise" and not s.frac_noise):
            raise Broken(9, f"{name} after {before} at {at}, wanted keys and values by turns")
        if name == "value":
            pairs.append(Pair(runs[number - 1][2], tokens, at))
        before = name
    if before != "value":
        raise Broken(9, f"the row ends with {before}, wanted a value")
    marked = [number for number, (name, *_) in enumerate(runs) if name == "the copy marker"]
    if marked != ([] if s.multi_query else [len(runs) - 3]):
        raise Broken(9, f"{len(marked)} copy markers, wanted one before the last pair")
    return pairs


@lru_cache
def _kinds(s: FuzzyInContextRecall) -> list[str]:
    """What each token is."""
    kinds = ["key"] * s.keys + ["value"] * (s.ordinary - s.keys) + ["noise"] * s.noise_vocab
    return [*kinds, "padding", "the copy marker"][: s.vocab]


def _motif(motif: Motif, least: int, most: int, name: str) -> None:
    """Invariant 10."""
    if not least <= len(motif) <= most:
        expected = f"{most}" if least == most else f"{least} to {most}"
        raise Broken(10, f"{name} {motif} has {len(motif)} tokens, wanted {expected}")
    if len(set(motif)) != len(motif):
        raise Broken(10, f"{name} {motif} has a token twice")


def _dense(whole: list[int], y: list[int]) -> None:
    """Invariant 11, of training rows."""
    if y != whole[1:]:
        at = next(at for at, got in enumerate(y) if got != whole[at + 1])
        raise Broken(11, f"target {y[at]} at {at}, wanted the next token, {whole[at + 1]}")


def _scored(s: FuzzyInContextRecall, whole: list[int], y: list[int], pairs: list[Pair]) -> None:
    """Invariant 12: values of keys that were seen before, and always the last."""
    expected = [IGNORED] * len(y)
    seen: set[Motif] = set()
    for pair in pairs:
        last = pair is pairs[-1]
        if last or (s.multi_query and pair.key in seen):
            for offset, token in enumerate(pair.value):
                expected[pair.value_at + offset - 1] = token
        seen.add(pair.key)
    if y != expected:
        at = next(at for at, got in enumerate(y) if got != expected[at])
        raise Broken(12, f"target {y[at]} at {at}, wanted {expected[at]}")


def _bounds(
    findings: Findings, s: FuzzyInContextRecall, split: str, parsed: list[list[Pair]]
) -> None:
    keys, values = [], []
    for pairs in parsed:
        seen: set[Motif] = set()
        for pair in pairs[:-1]:
            keys.append(pair.key)
            if pair.key not in seen:
                values.append(pair.value)
            seen.add(pair.key)
    for name, motifs, low, high, most in (
        ("key", keys, 0, s.keys, s.k_motif),
        ("value", values, s.keys, s.ordinary, s.v_motif),
    ):
        tokens = np.array([token for motif in motifs for token in motif])
        check_uniform(findings, f"uniform {name} tokens", split, tokens, low, high)
        if split == "train" or name == "value":
            lengths = np.array([len(motif) for motif in motifs])
            for length in range(1, most + 1):
                count = int((lengths == length).sum())
                rule = f"{name} motifs of length {length}"
                check_share(findings, rule, split, count, len(lengths), 1 / most, 1 / most)


def chance_of_equal_rows(s: FuzzyInContextRecall) -> float:
    """Return no less than about how likely two rows are equal: the fewest pairs, the same keys."""
    fewest = max(1, math.ceil((s.seq_len - 2 * s.longest) / s.longest))
    key, value = _chance(s.keys, s.k_motif), _chance(s.ordinary - s.keys, s.v_motif)
    noise = float(s.noise_vocab) ** 2
    return float(chance_of_pair(key, s.frac_noise, noise) ** fewest * value)


def _chance(alphabet: int, most: int) -> float:
    """Return how likely two motifs of 1 to `most` different tokens are equal."""
    return sum(1 / math.perm(alphabet, size) for size in range(1, most + 1)) / most**2
