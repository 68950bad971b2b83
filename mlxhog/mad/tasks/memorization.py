"""Memorization: one map from keys to values for the whole data set.

T/2 pairs of a key and the insert marker; the value is the marker's target. The map depends only on
the seed, and is the same in training and test. The reference's map includes noise tokens; this one
does not.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Findings, chance_of_pair, first_place
from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    Ints,
    NoiseSettings,
    Rows,
    TaskType,
    rows,
    seq_len,
    too_small,
    vocab,
)


@dataclass(frozen=True, kw_only=True)
class Memorization(NoiseSettings):
    """Settings; keys are 0 .. K-1, values K .. R-1, noise R .. V-2, the insert marker V-1."""

    task: ClassVar[str] = "memorization"

    vocab: int = vocab(256)
    seq_len: int = seq_len(32)
    train_rows: int = rows(256, "training", "num_train")

    @property
    def ordinary(self) -> int:
        """R."""
        return self.vocab - 1 - self.noise_vocab

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        if self.seq_len % 2:
            yield (
                f"seq_len is {self.seq_len}; a sequence is pairs of key and marker: "
                "an even number, at least 2"
            )
        why = f"a key and a value beside the insert marker and {self.noise_vocab} for noise"
        yield from too_small("vocab", self.vocab, why, 3 + self.noise_vocab)
        yield from super().broken_rules()


def draw_map(s: Memorization, rng: np.random.Generator) -> Fixed:
    """Draw the map: every key with a different value."""
    values = s.keys + rng.permutation(s.ordinary - s.keys)[: s.keys]
    return {"kv_keys": rng.permutation(s.keys), "kv_values": values}


def draw(
    s: Memorization, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; training and test rows are of one kind."""
    pairs = s.seq_len // 2
    chosen = rng.integers(0, s.keys, (n, pairs))
    x = np.full((n, s.seq_len), s.vocab - 1, np.int32)
    y = np.full((n, s.seq_len), IGNORED, np.int32)
    x[:, ::2] = fixed["kv_keys"][chosen]
    y[:, 1::2] = fixed["kv_values"][chosen]
    if s.frac_noise:
        noisy = rng.random((n, pairs)) < s.frac_noise
        noisy[np.arange(n), rng.integers(0, pairs, n)] = False  # never every pair of a row
        noise = rng.integers(s.ordinary, s.vocab - 1, (n, s.seq_len), dtype=np.int32)
        both = np.repeat(noisy, 2, axis=1)
        x, y = np.where(both, noise, x), np.where(both, IGNORED, y)
    return x, y


_NO_VALUE = -1


def check(s: Memorization, findings: Findings, data: Dataset) -> None:
    """Apply invariants 17 and 18, and the bounds, to all splits: they share one map."""
    good: dict[str, tuple[Ints, Ints, Bools]] = {}
    for split, arrays in data.splits().items():
        if findings.has_width(17, split, arrays[0], s.seq_len):
            good[split] = (*arrays, _check_inputs(s, findings, split, arrays[0]))
    values = _check_map(s, findings, data, good)
    for split, (x, y, whole) in good.items():
        right = _check_targets(s, findings, split, x, y, values, whole)
        if len(x) >= ENOUGH_ROWS and right.any():
            key = x[right, ::2]
            noisy = key >= s.ordinary
            findings.uniform("uniform keys", split, key[~noisy], 0, s.keys)
            if s.frac_noise:
                fewest = s.frac_noise * (1 - 2 / s.seq_len)  # one pair is never noise
                findings.share("noise share", split, noisy, fewest, s.frac_noise)
    pair = chance_of_pair(1 / s.keys, s.frac_noise, s.noise_vocab**2)
    findings.duplicates(data, float(pair ** (s.seq_len // 2 - 1) / s.keys))


def _check_inputs(s: Memorization, findings: Findings, split: str, x: Ints) -> Bools:
    """Invariant 17."""
    V, R = s.vocab, s.ordinary
    key, marker = x[:, ::2], x[:, 1::2]
    plain = (key >= 0) & (key < s.keys) & (marker == V - 1)
    noise = (key >= R) & (key < V - 1) & (marker >= R) & (marker < V - 1)
    wrong = ~(plain | noise)

    def say(row: int) -> str:
        at = first_place(wrong[row])
        return (
            f"({key[row, at]}, {marker[row, at]}) at {2 * at}, expected a key 0..{s.keys - 1} and "
            f"the insert marker {V - 1}"
        )

    return findings.rows(17, split, wrong.any(1), say, np.ones(len(x), bool))


def _check_map(
    s: Memorization, findings: Findings, data: Dataset, good: dict[str, tuple[Ints, Ints, Bools]]
) -> Ints:
    """Return the value of every key (K,): from the file's map, or from the rows.

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
            f"{len(data.kv_values)} values, expected each of 0..{s.keys - 1} once",
        ):
            values[keys] = data.kv_values
    else:
        findings.notes.append("no kv_keys and kv_values: the map is taken from the rows")
    if (values == _NO_VALUE).all():
        for x, y, whole in good.values():
            key, value = x[whole, ::2], y[whole, 1::2]
            shows_value = (key < s.keys) & (value != IGNORED)
            key, value = key[shows_value], value[shows_value]
            values[key] = np.where(values[key] == _NO_VALUE, value, values[key])
    shown = values[values != _NO_VALUE]
    unique, times = np.unique(shown, return_counts=True)
    outside = (unique < s.keys) | (unique >= s.ordinary)
    problem = ""
    if (times > 1).any():
        problem = f"value {unique[times > 1][0]} belongs to {times.max()} keys"
    elif outside.any():
        problem = f"value {unique[outside][0]}"
    expected = f"expected one key for each value of {s.keys}..{s.ordinary - 1}"
    findings.holds(18, "", not problem, f"{problem}; {expected}")
    return values


def _check_targets(
    s: Memorization, findings: Findings, split: str, x: Ints, y: Ints, values: Ints, good: Bools
) -> Bools:
    """Invariant 18, of the targets."""
    key = np.where(good[:, None], x[:, ::2], 0)
    plain = key < s.keys
    expected = np.full(y.shape, IGNORED)
    expected[:, 1::2] = np.where(plain, values[np.where(plain, key, 0)], IGNORED)
    return findings.targets(18, split, y, expected, good)


MEMORIZATION = TaskType(
    "memorization",
    "M",
    Memorization,
    draw,
    draw_map,
    check=check,
    about="one map from keys to values for all sequences, learnt from the training rows",
)
