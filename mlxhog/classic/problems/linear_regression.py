"""Linear regression on five dense features: all parameters on one cache line that everyone writes.

Steps are those of spec hogwild.md 3.4: gamma .01, beta .9, 20 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.generators.linreg5 import linreg5
from mlxhog.classic.problem import Defaults, Float32, Problem
from mlxhog.classic.problems.dense_linear import DenseLinear
from mlxhog.classic.problems.sources import only_generated

SIZE = 10_000
STEPS = Defaults(lr=0.01, beta=0.9, epochs=20, writes=("lossless", "racy"))


@dataclass(frozen=True, eq=False)
class LinearRegression(DenseLinear):
    """Dense least squares that knows its optimum."""

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """Besides the objective, how far the model is from the least squares optimum."""
        apart = np.abs(self.weights(params)[0] - self.optimum).max()
        return {**super().measures(params), "distance": float(apart)}

    @cached_property
    def optimum(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The least squares solution, (n_features,) float64, without squares of x."""
        features = self.train.features.astype(np.float64)
        found = np.linalg.lstsq(features, self.train.labels.astype(np.float64), rcond=None)
        return np.asarray(found[0])


def create(name: str, config: ClassicConfig) -> Problem:
    """Draw the rows.

    Raises:
        ConfigError: a file is given.
    """
    only_generated(name, config, "least-squares reads svmlight files")
    train = linreg5(config.size or SIZE, seed=config.seed)
    return LinearRegression(
        name=name,
        about=f"generated: {train.n_rows:,} rows of 5 features",
        train=train,
        test=None,
        loss="squares",
        lam=config.lam or 0.0,
        defaults=STEPS,
    )
