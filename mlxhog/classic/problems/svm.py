"""Sparse text with two classes: the paper's support vector machine, logistic, least squares.

Steps are those of the recorded run in spec hogwild.md 3.1: gamma .5, beta .8, ten epochs, a fifth
of the rows for testing. Its lam of 1 is the 2011 program's mu, which is 2 lam: lam is .5 here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from mlxhog.arena.memory import available_bytes
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.generators.rcv1 import rcv1_like
from mlxhog.classic.loaders.label_map import parse_label_map
from mlxhog.classic.loaders.svmlight import load_svmlight
from mlxhog.classic.problem import Defaults, Problem
from mlxhog.classic.problems.losses import Loss
from mlxhog.classic.problems.sources import generated_size, held_out, only_with_data
from mlxhog.classic.problems.sparse_linear import WRITES, SparseLinear
from mlxhog.errors import EnvironmentLacks

SIZE = 100_000
LAM = 0.5
BYTES_PER_FEATURE = 24  # the vector and its copy at the end, degrees, order, place, shrink
LOSSES: dict[str, Loss] = {"svm": "hinge", "logistic": "logistic", "least-squares": "squares"}
STEPS: dict[Loss, Defaults] = {
    "hinge": Defaults(lr=0.5, beta=0.8, epochs=10, writes=WRITES),
    "logistic": Defaults(lr=0.5, beta=0.8, epochs=10, writes=WRITES),
    "squares": Defaults(lr=0.5, beta=0.8, epochs=10, writes=WRITES),
}


def create(name: str, config: ClassicConfig) -> Problem:
    """Read the svmlight file of `config.data`, or generate rows like RCV1's.

    Raises:
        ConfigError: options of files without a file, or of the generator with one.
        DataError: a file is missing or malformed.
        EnvironmentLacks: a model with as many features as the file names does not fit.
    """
    loss = LOSSES[name]
    train, test, source = _from_file(loss, config) if config.data else _generated(config)
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
        lam=LAM if config.lam is None else config.lam,
        defaults=STEPS[loss],
        active_rows=config.active_rows,
    )


def _generated(config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    only_with_data(config, "test_data", "labels")
    rows = rcv1_like(config.size or SIZE, seed=config.seed)
    n_test = max(1, rows.n_rows // 5)
    order = np.arange(rows.n_rows)
    return rows.take(order[:-n_test]), rows.take(order[-n_test:]), "generated like RCV1"


def _from_file(loss: Loss, config: ClassicConfig) -> tuple[SparseRows, SparseRows, str]:
    generated_size(config)
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
    place = train.places_by_degree()
    return train.renumbered(place), test.renumbered(place), str(config.data)


def _require_room(rows: SparseRows) -> None:
    """Refuse a model that cannot fit, before anything as long as it is made."""
    wanted, had = rows.n_features * BYTES_PER_FEATURE, available_bytes()
    if had and wanted > had:
        raise EnvironmentLacks(
            f"the largest feature is number {rows.n_features:,}; a model of that many needs "
            f"{wanted:,} bytes, this machine has {had:,}: number the features that occur from 1 on"
        )
