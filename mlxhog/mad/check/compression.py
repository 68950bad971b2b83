"""Invariant 16: compression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.mad.check import statistics
from mlxhog.mad.check.findings import Findings, first_place
from mlxhog.mad.check.leak import chance_of_pair
from mlxhog.mad.tasks.compression import Compression
from mlxhog.mad.tasks.task import IGNORED

Ints = NDArray[np.integer[Any]]


def check(found: Findings, s: Compression, split: str, x: Ints, y: Ints) -> None:
    """Apply invariant 16, and the bounds, to the rows of a split."""
    T, V = s.seq_len, s.vocab
    if not found.holds(16, split, x.shape[1] == T, f"rows have {x.shape[1]} tokens, wanted {T}"):
        return
    place = np.arange(T) == T - 1
    most = V - 1 if s.frac_noise else s.ordinary
    token = (x >= 0) & (x < most)
    noisy = token & (x >= s.ordinary)
    right = np.where(place, x == V - 1, token) & (y == np.where(noisy, IGNORED, x))

    def say(row: int) -> str:
        at = first_place(~right[row])
        wanted = f"{V - 1}" if at == T - 1 else f"0..{most - 1}"
        same = "no target where noise is, else the input" if s.frac_noise else "the input as target"
        return (
            f"input {x[row, at]} and target {y[row, at]} at {at}, wanted input {wanted} and {same}"
        )

    good = found.rows(16, split, ~right.all(1), say, np.ones(len(x), bool))
    if len(x) >= statistics.ENOUGH_ROWS and good.any():
        tokens, noise = x[good, :-1], noisy[good, :-1]
        statistics.uniform(found, "uniform tokens", split, tokens[~noise], 0, s.ordinary)
        if s.frac_noise:
            share = s.frac_noise
            count = int(noise.sum())
            statistics.share(found, "noise share", split, count, noise.size, share, share)


def chance_of_equal_rows(s: Compression) -> float:
    """Return how likely two rows are equal."""
    token = chance_of_pair(1 / s.ordinary, s.frac_noise, s.noise_vocab)
    return float(token ** (s.seq_len - 1))
