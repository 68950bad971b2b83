"""Rows that stand twice: a test row among the training rows, or one row two times."""

from __future__ import annotations

import numpy as np

from mlxhog.mad.check import statistics
from mlxhog.mad.check.findings import Findings
from mlxhog.mad.tasks.dataset import Dataset


def check(found: Findings, data: Dataset, chance: float) -> None:
    """Count equal rows; `chance` is about how likely two rows of the task are equal."""
    rows = {split: [row.tobytes() for row in x] for split, (x, _) in data.splits().items()}
    for split, of in rows.items():
        n = len(of)
        again = n - len(set(of))
        statistics.coincidences(
            found, "duplicate rows", split, again, n * (n - 1) / 2, chance, "rows stand twice"
        )
    n_train, train = len(rows["train"]), set(rows.pop("train"))
    for split, of in rows.items():
        leaked = sum(row in train for row in of)
        pairs = float(n_train * len(of))
        what = "rows stand in train, too"
        statistics.coincidences(found, "leak", split, leaked, pairs, chance, what)


def chance_of_pair(chance: float, noise_share: float, noise: float) -> float:
    """Return how likely two pairs are equal where each is noise of `noise` kinds with a share."""
    both_noise = noise_share**2 / noise if noise_share else 0.0
    return float(np.square(1 - noise_share) * chance + both_noise)
