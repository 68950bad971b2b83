"""Invariants 17 and 18: memorization."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check import statistics
from mlxhog.mad.check.findings import Bools, Findings, first_place
from mlxhog.mad.check.leak import chance_of_pair
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.memorization import Memorization
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]
_NO_VALUE = -1


def check(found: Findings, s: Memorization, data: Dataset) -> None:
    """Apply invariants 17 and 18, and the bounds, to all splits: they share one map."""
    good: dict[str, tuple[Ints, Ints, Bools]] = {}
    for split, arrays in data.splits().items():
        whole = _inputs(found, s, split, arrays[0])
        if whole is not None:
            good[split] = (*arrays, whole)
    values = _map(found, s, data, good)
    for split, (x, y, rows) in good.items():
        rows = _targets(found, s, split, x, y, values, rows)
        if len(x) >= statistics.ENOUGH_ROWS and rows.any():
            key = x[rows, ::2]
            noisy = key >= s.ordinary
            statistics.uniform(found, "uniform keys", split, key[~noisy], 0, s.keys)
            if s.frac_noise:
                fewest = s.frac_noise * (1 - 2 / s.seq_len)  # where one pair is never noise
                count, draws = int(noisy.sum()), noisy.size
                statistics.share(found, "noise share", split, count, draws, fewest, s.frac_noise)


def _inputs(found: Findings, s: Memorization, split: str, x: Ints) -> Bools | None:
    """Invariant 17; None where rows have another length."""
    T, V, R = s.seq_len, s.vocab, s.ordinary
    if not found.holds(17, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
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

    return found.rows(17, split, wrong.any(1), say, np.ones(len(x), bool))


def _map(
    found: Findings, s: Memorization, data: Dataset, good: dict[str, tuple[Ints, Ints, Bools]]
) -> Ints:
    """Return the value of every key (K,): the file's map, or what the rows show of it.

    Invariant 18, of the map itself: it covers every key, is one-to-one and in range.
    """
    values = np.full(s.keys, _NO_VALUE)
    if data.kv_keys is not None and data.kv_values is not None:
        keys = data.kv_keys
        covered = np.array_equal(np.sort(keys), np.arange(s.keys))
        same = len(keys) == len(data.kv_values)
        if found.holds(
            18,
            "",
            covered and same,
            f"the map has {len(np.unique(keys))} different keys in {len(keys)} and "
            f"{len(data.kv_values)} values, wanted each of 0..{s.keys - 1} once",
        ):
            values[keys] = data.kv_values
    else:
        found.notes.append("no kv_keys and kv_values: the map is what the rows show of it")
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
    wanted = f"wanted one key for each value of {s.keys}..{s.ordinary - 1}"
    found.holds(18, "", not problem, f"{problem}; {wanted}")
    return values


def _targets(
    found: Findings, s: Memorization, split: str, x: Ints, y: Ints, values: Ints, good: Bools
) -> Bools:
    """Invariant 18, of the targets."""
    key = np.where(good[:, None], x[:, ::2], 0)
    plain = key < s.keys
    wanted = np.full(y.shape, IGNORED)
    wanted[:, 1::2] = np.where(plain, values[np.where(plain, key, 0)], IGNORED)
    wrong = y != wanted

    def say(row: int) -> str:
        at = first_place(wrong[row])
        return f"target {y[row, at]} at {at}, wanted {wanted[row, at]}"

    return found.rows(18, split, wrong.any(1), say, good)


def chance_of_equal_rows(s: Memorization) -> float:
    """Return about how likely two rows are equal; one pair of a row is never noise."""
    pair = chance_of_pair(1 / s.keys, s.frac_noise, s.noise_vocab**2)
    return float(pair ** (s.seq_len // 2 - 1) / s.keys)
