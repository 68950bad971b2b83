"""One-vs-rest support vector machines on raw pixels: dense, so every step meets every other."""

from __future__ import annotations

from pathlib import Path

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.generators.cifar import cifar_dense
from mlxhog.classic.loaders.cifar10 import load_cifar10
from mlxhog.classic.problem import Defaults, Problem
from mlxhog.classic.problems.dense_linear import DenseLinear
from mlxhog.classic.problems.sources import generated_size, held_out, only_with_data

SIZE = 10_000
STEPS = Defaults(lr=0.002, beta=0.9, epochs=20, batch_size=2, writes=("lossless", "racy"))


def create(name: str, config: ClassicConfig) -> Problem:
    """Read CIFAR-10's binary files, or generate images like them.

    Raises:
        ConfigError: options of files without a file, or of the generator with one.
        DataError: a file is missing or malformed.
    """
    if config.data is None:
        only_with_data(config, "test_data")
        train, test = cifar_dense(config.size or SIZE, seed=config.seed)
        source = "generated like CIFAR-10"
    else:
        generated_size(config)
        named = None if config.test_data is None else Path(config.test_data)
        train, test = load_cifar10(Path(config.data), named)
        source = config.data
    if test is None:
        train, test = held_out(train, train.n_rows, config.seed)
    return DenseLinear(
        name=name,
        about=f"{source}: {train.n_rows:,} training and {test.n_rows:,} test images, 32 x 32 x 3",
        train=train,
        test=test,
        loss="hinge",
        lam=config.lam or 0.0,
        defaults=STEPS,
    )
