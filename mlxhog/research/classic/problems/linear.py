"""The linear problems on sparse rows: their data, learning rates, and measures.

f(x) = sum over rows a of [ loss(y_a, z_a.x) + lam sum over u in a of x_u^2 / d_u ], where d_u is
the number of rows that have feature u. So over an epoch each coordinate gets the gradient of
lam x_u^2 once, spread over the steps that touch it. Source: Niu et al. 2011, Hogwild!,
arXiv:1106.5730, section 3.

The losses here are for evaluation, in float64; training uses those in metal/native/classic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.generators import rcv1_like
from mlxhog.research.classic.loaders import load_svmlight, validation
from mlxhog.research.classic.problem import (
    Defaults,
    Float32,
    Int32,
    Int64,
    Kernel,
    SparseRows,
    build,
)

Float64 = NDArray[np.float64]
Loss = Literal["hinge", "logistic", "squares"]

LANES = 16  # floats per lock word: 64 bytes, one cache line of most processors
SPARSE_WRITES = ("hot-cold", "racy", "lossless")
_NO_SHRINK = np.empty(0, np.float32)


def loss_values(loss: Loss, scores: Float64, labels: Float64) -> Float64:
    """The loss of each score; a score is the product of a row with x.

    "hinge" is max(1 - y s, 0), "logistic" ln(1 + exp(-y s)), and "squares" (s - y)^2 / 2.
    """
    if loss == "hinge":
        return np.maximum(1.0 - labels * scores, 0.0)
    if loss == "logistic":
        return np.logaddexp(0.0, -labels * scores)
    return 0.5 * np.square(scores - labels)


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """A sparse linear model with its data; a `Problem`."""

    name: str  # name of the problem
    about: str  # description of the data
    train: SparseRows  # training rows
    test: SparseRows | None  # test rows, with the same number of features
    loss: Loss  # loss of a row
    lam: float  # weight of the L2 term
    defaults: Defaults  # default learning rates and epochs

    @property
    def n_examples(self) -> int:
        return self.train.n_rows

    @property
    def kernel(self) -> Kernel:
        shrink: dict[str, Any] = {} if self.lam else {"shrink": _NO_SHRINK}
        return partial(build, native="LinearProblem", loss=self.loss, **shrink)

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """One vector x of zeros, in rows of one cache line; values past the last feature stay 0."""
        return {"x": np.zeros((-(-self.train.n_features // LANES), LANES), np.float32)}

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The rows, and if lam is not 0 the shrink of each feature; an absent term saves work."""
        names = ("indptr", "indices", "values", "labels")
        arrays: dict[str, NDArray[Any]] = {name: getattr(self.train, name) for name in names}
        if self.lam:
            shrink = 2 * self.lam / np.maximum(self.train.degrees(), 1)
            arrays["shrink"] = shrink.astype(np.float32)
        return arrays

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective; mean losses without the L2 term, and errors, of both sets."""
        x = params["x"].ravel()[: self.train.n_features].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            train = self._measure("train", self.train, x)
            penalty = self.lam * np.square(x)[self.train.degrees() > 0].sum()
            test = {} if self.test is None else self._measure("test", self.test, x)
            objective = self.n_examples * train["train_loss"] + penalty
        return {"objective": float(objective), **train, **test}

    def supports(self) -> tuple[Int64, Int32, int]:
        return self.train.indptr, self.train.indices, self.train.n_features

    def _measure(self, which: str, rows: SparseRows, x: Float64) -> dict[str, float]:
        scores, labels = rows.scores(x), rows.labels.astype(np.float64)
        measures = {f"{which}_loss": float(loss_values(self.loss, scores, labels).mean())}
        if rows.label_kind == "signs":  # a score of 0 counts as +1
            measures[f"{which}_error"] = float(np.mean((scores >= 0) != (labels > 0)))
        return measures


# Steps and lam are those of the 2011 program: gamma .5, beta .8, ten epochs, a fifth of the rows
# for testing. Its mu of 1 is 2 lam: lam is .5 here.
TEXT_ROWS, TEXT_LAM = 100_000, 0.5
TEXT_STEPS = Defaults(lr=0.5, beta=0.8, epochs=10, writes=SPARSE_WRITES)
LOSSES: dict[str, Loss] = {"svm": "hinge", "logistic": "logistic", "least-squares": "squares"}


def create(name: str, config: ClassicConfig) -> SparseLinear:
    """The problem on an svmlight file, or on generated rows like RCV1's."""
    loss = LOSSES[name]
    if config.data is None:
        rows, source = rcv1_like(config.size or TEXT_ROWS, seed=config.seed), "generated like RCV1"
        order, n_test = np.arange(rows.n_rows), max(1, rows.n_rows // 5)
        train, test = rows.take(order[:-n_test]), rows.take(order[-n_test:])
    else:
        source = config.data
        train, test = _from_file(loss, Path(config.data), config)
    about = (
        f"{source}: {train.n_rows:,} training and {test.n_rows:,} test rows, "
        f"{train.n_features:,} features, {len(train.indices):,} non-zero values in training"
    )
    lam = TEXT_LAM if config.lam is None else config.lam
    return SparseLinear(name, about, train, test, loss, lam, TEXT_STEPS)


def _from_file(loss: Loss, path: Path, config: ClassicConfig) -> tuple[SparseRows, SparseRows]:
    rows = load_svmlight(path, label_kind="numbers" if loss == "squares" else "signs")
    if (np.abs(rows.labels) == 1).all():
        rows = replace(rows, label_kind="signs")
    train, test = validation(rows, config.seed)
    # hot-cold keeps the first coordinates private, so the most frequent features come first.
    number = np.empty(train.n_features, dtype=np.int32)
    number[np.argsort(-train.degrees(), kind="stable")] = np.arange(train.n_features)
    return train.renumbered(number), test.renumbered(number)
