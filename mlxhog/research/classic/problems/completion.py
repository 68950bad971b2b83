"""Matrix completion: a rating is the product of its user's row and its item's row.

    min over L, R:  sum over ratings of
                    (L_u . R_v - Z_uv)^2 + mu / (2 d_u) |L_u|^2 + mu / (2 d_v) |R_v|^2

where d is the number of ratings of a row, so an epoch applies the L2 term of each row once. Z are
the ratings less their mean. Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.generators import DRAWS, netflix_like
from mlxhog.research.classic.loaders import load_ratings
from mlxhog.research.classic.problem import (
    Defaults,
    Float32,
    Int32,
    Int64,
    Ratings,
    build,
    pack_pairs,
    pair_supports,
)

RANK, MU = 16, 1.0
VALIDATION = 10  # one rating in ten
INITIAL_SPREAD = 0.1


def create(name: str, config: ClassicConfig) -> "MatrixCompletion":
    """The problem on the ratings of `config.data`, or on generated ones."""
    if config.data is None:
        ratings = netflix_like(config.size or DRAWS, seed=config.seed)
    else:
        ratings = load_ratings(Path(config.data))
    return MatrixCompletion(
        *hold_out(ratings, config.seed),
        rank=RANK if config.rank is None else config.rank,
        mu=MU if config.mu is None else config.mu,
        name=name,
    )


def hold_out(ratings: Ratings, seed: int) -> tuple[Ratings, Ratings | None]:
    """Hold out a random tenth of the ratings for testing; the rest keeps its order."""
    shuffled = np.random.default_rng(seed).permutation(ratings.n_entries)
    n_test = ratings.n_entries // VALIDATION
    if n_test == 0:
        return ratings, None
    return ratings.take(np.sort(shuffled[n_test:])), ratings.take(shuffled[:n_test])


@dataclass(frozen=True, eq=False)
class MatrixCompletion:
    """Matrix completion on these ratings."""

    train: Ratings  # training ratings
    test: Ratings | None = None  # test ratings of the same users and items, or None
    rank: int = RANK  # columns of L and R
    mu: float = MU  # weight of the L2 terms
    name: str = "matrix-completion"  # name on the command line

    defaults = Defaults(lr=0.02, beta=0.9, epochs=12)
    kernel = partial(build, native="CompletionProblem", rows=("users", "items"))

    @property
    def about(self) -> str:
        return (
            f"{self.train.n_entries:,} ratings of {self.train.n_items:,} items by "
            f"{self.train.n_users:,} users, rank {self.rank}"
        )

    @property
    def n_examples(self) -> int:
        return self.train.n_entries

    @property
    def width(self) -> int:
        """Floats per row; those past the rank stay zero."""
        return -(-self.rank // _native.ROW_STEP) * _native.ROW_STEP

    @cached_property
    def mean(self) -> float:
        """Mean of the training ratings."""
        return float(self.train.ratings.mean(dtype=np.float64))

    def initial(self, seed: int) -> dict[str, Float32]:
        """L as `users`, R as `items`: small random rows, as both gradients vanish at zero."""
        rng = np.random.default_rng(seed)
        values = {}
        for name, n in (("users", self.train.n_users), ("items", self.train.n_items)):
            rows = np.zeros((n, self.width), dtype=np.float32)
            drawn = rng.standard_normal((n, self.rank), dtype=np.float32)
            rows[:, : self.rank] = np.float32(INITIAL_SPREAD) * drawn
            values[name] = rows
        return values

    def data(self) -> dict[str, NDArray[Any]]:
        """Training ratings less their mean, and the weight of each row's L2 term per example."""
        return {
            "ratings": self._packed_sets[0],
            "shrink_users": _shrink(self.mu, self._user_degrees),
            "shrink_items": _shrink(self.mu, self._item_degrees),
        }

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective, and root mean squared errors of training and test ratings."""
        train = self._squared_error(params, self._packed_sets[0])
        rated = params["users"][self._user_degrees > 0], params["items"][self._item_degrees > 0]
        shrunk = sum(float(np.einsum("ij,ij->", x, x, dtype=np.float64)) for x in rated)
        measures = {
            "objective": train + 0.5 * self.mu * shrunk,
            "train_error": float(np.sqrt(train / self.train.n_entries)),
        }
        if self.test is not None:
            test = self._squared_error(params, self._packed_sets[1])
            measures["test_error"] = float(np.sqrt(test / self.test.n_entries))
        return measures

    def supports(self) -> tuple[Int64, Int32, int]:
        """Two rows per rating; items are numbered after the users."""
        indptr, indices = pair_supports(self.train.users, self.train.items + self.train.n_users)
        return indptr, indices, self.train.n_users + self.train.n_items

    @cached_property
    def _user_degrees(self) -> Int64:
        return np.bincount(self.train.users, minlength=self.train.n_users)

    @cached_property
    def _item_degrees(self) -> Int64:
        return np.bincount(self.train.items, minlength=self.train.n_items)

    @cached_property
    def _packed_sets(self) -> list[Int32]:
        return [
            pack_pairs(one.users, one.items, one.ratings - np.float64(self.mean))
            for one in (self.train, self.test)
            if one is not None
        ]

    def _squared_error(self, params: Mapping[str, Float32], ratings: Int32) -> float:
        users, items = params["users"], params["items"]
        no_shrink = np.zeros(len(users), np.float32), np.zeros(len(items), np.float32)
        return _native.CompletionProblem(users, items, ratings, *no_shrink).squared_error()


def _shrink(mu: float, degrees: Int64) -> Float32:
    return np.where(degrees > 0, mu / np.maximum(degrees, 1), 0.0).astype(np.float32)
