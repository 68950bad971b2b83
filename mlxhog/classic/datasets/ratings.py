"""Ratings: a matrix of users and items of which few entries are known."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog.classic.datasets.arrays import (
    integers,
    numbers,
    refuse_first,
    refuse_non_finite,
    same_length,
    within,
)
from mlxhog.errors import DataError


@dataclass(frozen=True, eq=False)
class Ratings:
    """Known entries of a matrix; entry k says that user users[k] rated item items[k].

    A pair that is there twice counts twice.

    Attributes:
        users: (entries,) int32, 0 .. n_users - 1.
        items: (entries,) int32, 0 .. n_items - 1.
        ratings: (entries,) float32, within [lowest, highest].
        n_users: number of users, also of those without a rating here.
        n_items: number of items, also of those without a rating here.
        lowest: smallest legal rating.
        highest: largest legal rating.

    Raises:
        DataError: at construction, for anything else; the message names the entry.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32]
    n_users: int
    n_items: int
    lowest: float = -math.inf
    highest: float = math.inf

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        object.__setattr__(self, "users", integers("users", self.users, np.int32))
        object.__setattr__(self, "items", integers("items", self.items, np.int32))
        object.__setattr__(self, "ratings", numbers("ratings", self.ratings))
        same_length(users=self.users, items=self.items, ratings=self.ratings)
        if len(self.ratings) == 0:
            raise DataError("no ratings at all: nothing can be completed from an empty matrix")
        within("users", self.users, self.n_users, "users")
        within("items", self.items, self.n_items, "items")
        refuse_non_finite(self.ratings, lambda at: f"entry {at}: the rating")
        refuse_first(
            (self.ratings < self.lowest) | (self.ratings > self.highest),
            lambda at: (
                f"entry {at} rates {self.ratings[at]:g}; wanted {self.lowest:g} .. {self.highest:g}"
            ),
        )

    @property
    def n_entries(self) -> int:
        """Number of known entries."""
        return len(self.ratings)

    def take(self, entries: ArrayLike) -> Self:
        """A copy that has these entries, in this order; at least one."""
        chosen = np.asarray(entries, dtype=np.int64)
        return dataclasses.replace(
            self,
            users=self.users[chosen],
            items=self.items[chosen],
            ratings=self.ratings[chosen],
        )
