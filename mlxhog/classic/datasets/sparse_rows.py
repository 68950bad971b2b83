"""Sparse examples: one row of few features each, compressed (CSR)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog.classic.datasets.arrays import (
    integers,
    numbers,
    refuse_first,
    refuse_non_finite,
    same_length,
)
from mlxhog.classic.datasets.labels import LabelKind, check_labels
from mlxhog.errors import DataError


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Examples whose features are mostly zero; row r is entries indptr[r] .. indptr[r + 1].

    Attributes:
        indptr: (rows + 1,) int64, where rows begin; no row is empty.
        indices: (entries,) int32, features of each row in rising order, none twice.
        values: (entries,) float32, finite.
        labels: (rows,) float32, of the kind that `label_kind` says.
        n_features: number of features, at least the largest index + 1.
        label_kind: what labels are, see `LabelKind`.

    Raises:
        DataError: at construction, for anything else; the message names the row.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    n_features: int
    label_kind: LabelKind = "signs"

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        self._set(
            indptr=integers("indptr", self.indptr, np.int64),
            indices=integers("indices", self.indices, np.int32),
            values=numbers("values", self.values),
            labels=numbers("labels", self.labels),
        )
        self._check_rows()
        self._check_indices()
        refuse_non_finite(
            self.values,
            lambda at: f"row {self.row_of(at)}: the value of feature {self.indices[at]}",
        )
        refuse_non_finite(self.labels, lambda row: f"row {row}: the label")
        check_labels(self.labels, self.label_kind, 2 if self.label_kind == "signs" else 0)

    @property
    def n_rows(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def row(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Features and values of one example, as views."""
        entries = slice(self.indptr[number], self.indptr[number + 1])
        return self.indices[entries], self.values[entries]

    def row_of(self, entry: int) -> int:
        """The row that an entry of `indices` belongs to."""
        return int(np.searchsorted(self.indptr, entry, side="right")) - 1

    def degrees(self) -> NDArray[np.int64]:
        """(n_features,): in how many examples each feature occurs, the spec's d_u."""
        return np.bincount(self.indices, minlength=self.n_features)

    def scores(self, x: ArrayLike) -> NDArray[np.float64]:
        """(rows,) float64: the product of every row with x, (n_features,)."""
        products = self.values * np.asarray(x, dtype=np.float64)[self.indices]
        return np.add.reduceat(products, self.indptr[:-1])

    def take(self, rows: ArrayLike) -> Self:
        """A copy that has these rows, in this order; at least one."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[chosen]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        # Entry k of new row r comes from old entry indptr[chosen[r]] + k.
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], lengths)
        return dataclasses.replace(
            self,
            indptr=indptr,
            indices=self.indices[entries],
            values=self.values[entries],
            labels=self.labels[chosen],
        )

    def places_by_degree(self) -> NDArray[np.int32]:
        """(n_features,): for each feature its number where the busiest one has number 0."""
        place = np.empty(self.n_features, dtype=np.int32)
        place[np.argsort(-self.degrees(), kind="stable")] = np.arange(self.n_features)
        return place

    def renumbered(self, place: NDArray[np.int32]) -> Self:
        """The same rows with feature u called place[u], a permutation of all features."""
        lengths = np.diff(self.indptr)
        indices = place[self.indices]
        keys = np.repeat(np.arange(self.n_rows) * self.n_features, lengths) + indices
        rising = np.argsort(keys)
        return dataclasses.replace(self, indices=indices[rising], values=self.values[rising])

    def _set(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    def _check_rows(self) -> None:
        if self.n_rows == 0:
            raise DataError("no examples at all: nothing can be learned from an empty data set")
        if len(self.indptr) != self.n_rows + 1:
            raise DataError(
                f"indptr has {len(self.indptr)} entries for {self.n_rows} labels; "
                "wanted one more than rows"
            )
        same_length(indices=self.indices, values=self.values)
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.indices):
            raise DataError(
                f"indptr runs from {self.indptr[0]} to {self.indptr[-1]}; "
                f"wanted 0 to {len(self.indices)}, the number of entries"
            )
        lengths = np.diff(self.indptr)
        refuse_first(lengths < 0, lambda row: f"row {row} ends before it begins, see indptr")
        refuse_first(
            lengths == 0,
            lambda row: f"row {row} is empty; no step can learn from it, so leave it out",
        )

    def _check_indices(self) -> None:
        def refuse(wrong: NDArray[np.bool_], what: str) -> None:
            refuse_first(
                wrong,
                lambda entry: f"row {self.row_of(entry)} has feature {self.indices[entry]}: {what}",
            )

        if self.indices.min() < 0 or self.indices.max() >= self.n_features:
            refuse(
                (self.indices < 0) | (self.indices >= self.n_features),
                f"wanted 0..{self.n_features - 1}, for {self.n_features} features",
            )
        steps = np.diff(self.indices)
        steps[self.indptr[1:-1] - 1] = 1  # from the end of a row to the next one all is allowed
        not_rising = np.concatenate([[False], steps <= 0])
        if not_rising.any():
            first = int(np.argmax(not_rising))
            repeated = self.indices[first] == self.indices[first - 1]
            what = "it is there twice; add its values up" if repeated else "not in rising order"
            refuse(not_rising, what)
