"""The reimplementation's synthetic SVM: 100 features, 200 epochs of mini-batches of two.

Steps are the document's: learning rate .001, times .99 per epoch, no squares.
"""

from __future__ import annotations

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.generators.svm100 import svm100
from mlxhog.classic.problem import Defaults, Problem
from mlxhog.classic.problems.sources import only_generated
from mlxhog.classic.problems.sparse_linear import SparseLinear

SIZE = 10_000
STEPS = Defaults(lr=0.001, beta=0.99, epochs=200, batch_size=2, writes=("racy", "lossless"))


def create(name: str, config: ClassicConfig) -> Problem:
    """Draw the training rows, and a thousand test rows of the same plane.

    Raises:
        ConfigError: a file is given.
    """
    only_generated(name, config, "svm reads svmlight files")
    train, test = svm100(config.size or SIZE, seed=config.seed)
    return SparseLinear(
        name=name,
        about=f"generated: {train.n_rows:,} training and 1,000 test rows, 100 features, 20 % set",
        train=train,
        test=test,
        loss="hinge",
        lam=config.lam or 0.0,
        defaults=STEPS,
    )
