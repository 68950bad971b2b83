"""The linear problems by name: their data, read or generated, and their step sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mlxhog.arena.process import available_bytes
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.generators.rows import cifar_dense, linreg5, rcv1_like, svm100
from mlxhog.classic.loaders.cifar10 import load_cifar10
from mlxhog.classic.loaders.svmlight import load_svmlight, parse_label_map
from mlxhog.classic.problem import Defaults, Float32, Problem
from mlxhog.classic.problems.linear_models import SPARSE_WRITES, DenseLinear, Loss, SparseLinear
from mlxhog.errors import DataError, EnvironmentLacks

HELD_OUT_SHARE = 0.2


class Takeable(Protocol):
    """A data set of which some examples can be taken."""

    def take(self, rows: ArrayLike) -> Self:
        """Those examples, in that order."""


Data = TypeVar("Data", bound=Takeable)


def held_out(data: Data, n: int, seed: int) -> tuple[Data, Data]:
    """Split off a fifth for testing, drawn at random; the same for the same seed.

    Raises:
        DataError: there are fewer than two examples.
    """
    if n < 2:
        raise DataError(f"{n} example cannot be split; name a file of test data with --test-data")
    order = np.random.default_rng([seed, 0x7E57]).permutation(n)
    n_test = max(1, int(n * HELD_OUT_SHARE))
    return data.take(np.sort(order[n_test:])), data.take(np.sort(order[:n_test]))


# -- sparse text with two classes: the paper's support vector machine, logistic, least squares -----
#
# Steps and lam are those of the 2011 program: gamma .5, beta .8, ten epochs, a fifth of the rows
# for testing. Its mu of 1 is 2 lam: lam is .5 here.

TEXT_ROWS = 100_000
TEXT_LAM = 0.5
BYTES_PER_FEATURE = 24  # the vector and its copy at the end, degrees, order, numbers, shrink
LOSSES: dict[str, Loss] = {"svm": "hinge", "logistic": "logistic", "least-squares": "squares"}
TEXT_STEPS: dict[Loss, Defaults] = {
    "hinge": Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES),
    "logistic": Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES),
    "squares": Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES),
}


def _sparse_text(name: str, config: ClassicConfig) -> Problem:
    """Read the svmlight file of `config.data`, or generate rows like RCV1's.

    Raises:
        ConfigError: options of files without a file, or of the generator with one.
        DataError: a file is missing or malformed.
        EnvironmentLacks: a model with as many features as the file names does not fit.
    """
    loss = LOSSES[name]
    train, test, source = _text_from_file(loss, config) if config.data else _generated_text(config)
    about = (
        f"{source}: {train.n_rows:,} training and {test.n_rows:,} test rows, "
        f"{train.n_features:,} features, {len(train.indices):,} of them set in training"
    )
    return SparseLinear(
        name=name,
        about=about,
        train=train,
        test=test,
        loss=loss,
        lam=TEXT_LAM if config.lam is None else config.lam,
        defaults=TEXT_STEPS[loss],
        active_rows=config.active_rows,
    )


def _generated_text(config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    config.refuse_file_options("test_data", "labels")
    rows = rcv1_like(config.size or TEXT_ROWS, seed=config.seed)
    n_test = max(1, rows.n_rows // 5)
    order = np.arange(rows.n_rows)
    return rows.take(order[:-n_test]), rows.take(order[-n_test:]), "generated like RCV1"


def _text_from_file(loss: Loss, config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    config.refuse_size()
    train, test = load_svmlight(
        Path(str(config.data)),
        None if config.test_data is None else Path(config.test_data),
        labels=parse_label_map(config.labels),
        label_kind="numbers" if loss == "squares" else "signs",
    )
    _require_room(train)
    if test is None:
        train, test = held_out(train, train.n_rows, config.seed)
    if loss == "squares" and all((np.abs(rows.labels) == 1).all() for rows in (train, test)):
        train, test = (dataclasses.replace(rows, label_kind="signs") for rows in (train, test))
    # The busiest features get the lowest numbers, which is where hot-cold looks for them.
    number = train.numbers_by_degree()
    return train.renumbered(number), test.renumbered(number), str(config.data)


def _require_room(rows: SparseRows) -> None:
    """Refuse a model that cannot fit, before anything of that length is allocated."""
    needed, had = rows.n_features * BYTES_PER_FEATURE, available_bytes()
    if had and needed > had:
        raise EnvironmentLacks(
            f"the largest feature is number {rows.n_features:,}; a model of that many needs "
            f"{needed:,} bytes, this machine has {had:,}: number the features that occur from 1 on"
        )


# -- a synthetic support vector machine: 100 features, mini-batches of two, no squares -------------

SYNTHETIC_ROWS = 10_000
SYNTHETIC_STEPS = Defaults(
    lr=0.001, beta=0.99, epochs=200, batch_size=2, writes=("racy", "lossless")
)


def _synthetic_svm(name: str, config: ClassicConfig) -> Problem:
    """Draw the training rows, and a thousand test rows of the same plane.

    Raises:
        ConfigError: --data names a file.
    """
    config.refuse_data(name, "svm reads svmlight files")
    train, test = svm100(config.size or SYNTHETIC_ROWS, seed=config.seed)
    return SparseLinear(
        name=name,
        about=f"generated: {train.n_rows:,} training and 1,000 test rows, 100 features, 20 % set",
        train=train,
        test=test,
        loss="hinge",
        lam=config.lam or 0.0,
        defaults=SYNTHETIC_STEPS,
    )


# -- one-vs-rest support vector machines on raw pixels: every step meets every other ---------------

IMAGE_ROWS = 10_000
IMAGE_STEPS = Defaults(lr=0.002, beta=0.9, epochs=20, batch_size=2, writes=("lossless", "racy"))


def _image_svm(name: str, config: ClassicConfig) -> Problem:
    """Read CIFAR-10's binary files, or generate images like them.

    Raises:
        ConfigError: options of files without a file, or of the generator with one.
        DataError: a file is missing or malformed.
    """
    if config.data is None:
        config.refuse_file_options("test_data")
        train, test = cifar_dense(config.size or IMAGE_ROWS, seed=config.seed)
        source = "generated like CIFAR-10"
    else:
        config.refuse_size()
        test_path = None if config.test_data is None else Path(config.test_data)
        train, test = load_cifar10(Path(config.data), test_path)
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
        defaults=IMAGE_STEPS,
    )


# -- linear regression on five features: all parameters on one cache line that everyone writes -----

REGRESSION_ROWS = 10_000
REGRESSION_STEPS = Defaults(lr=0.01, beta=0.9, epochs=20, writes=("lossless", "racy"))


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
        solution = np.linalg.lstsq(features, self.train.labels.astype(np.float64), rcond=None)
        return np.asarray(solution[0])


def _linear_regression(name: str, config: ClassicConfig) -> Problem:
    """Draw the rows.

    Raises:
        ConfigError: --data names a file.
    """
    config.refuse_data(name, "least-squares reads svmlight files")
    train = linreg5(config.size or REGRESSION_ROWS, seed=config.seed)
    return LinearRegression(
        name=name,
        about=f"generated: {train.n_rows:,} rows of 5 features",
        train=train,
        test=None,
        loss="squares",
        lam=config.lam or 0.0,
        defaults=REGRESSION_STEPS,
    )


_CREATE: dict[str, Callable[[str, ClassicConfig], Problem]] = {
    "svm": _sparse_text,
    "logistic": _sparse_text,
    "least-squares": _sparse_text,
    "synthetic-svm": _synthetic_svm,
    "image-svm": _image_svm,
    "linear-regression": _linear_regression,
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read or generate the data of one of these problems.

    Raises:
        ConfigError: an option does not go with the problem or with the others.
        DataError: a file is missing or malformed.
        EnvironmentLacks: the model does not fit.
    """
    return _CREATE[name](name, config)
