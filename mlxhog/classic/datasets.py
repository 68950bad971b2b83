"""The data of the classic problems, as the generators and loaders make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

LabelKind = Literal["signs", "numbers"]
"""`signs`: -1 or +1. `numbers`: regression targets."""


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Examples whose features are mostly zero; row r is entries indptr[r] .. indptr[r + 1]."""

    indptr: NDArray[np.int64]  # (rows + 1,) int64, the first entry of each row; no row is empty
    indices: NDArray[np.int32]  # (entries,) int32, features of each row, ascending, each once
    values: NDArray[np.float32]  # (entries,) float32
    labels: NDArray[np.float32]  # (rows,) float32, of the kind `label_kind`
    n_features: int  # number of features, at least the largest index + 1
    label_kind: LabelKind = "signs"  # kind of the labels

    @property
    def n_rows(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def degrees(self) -> NDArray[np.int64]:
        """(n_features,): d_u, the number of examples that have each feature."""
        return np.bincount(self.indices, minlength=self.n_features)

    def scores(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(rows,) float64: the product of every row with x, (n_features,)."""
        return np.add.reduceat(self.values * x[self.indices], self.indptr[:-1])

    def take(self, rows: NDArray[Any]) -> Self:
        """A copy that has these rows, in this order."""
        chosen = self._of(self._matrix(self.indices)[rows])
        return dataclasses.replace(chosen, labels=self.labels[rows])

    def renumbered(self, number: NDArray[np.int32]) -> Self:
        """The same rows with feature u renumbered to number[u], a permutation of all features."""
        matrix = self._matrix(number[self.indices])
        matrix.sort_indices()
        return self._of(matrix)

    def _matrix(self, indices: NDArray[np.int32]) -> Any:
        from scipy.sparse import csr_array

        parts = self.values.copy(), indices, self.indptr
        return csr_array(parts, (self.n_rows, self.n_features))

    def _of(self, matrix: Any) -> Self:
        indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
        return dataclasses.replace(self, indptr=indptr, indices=indices, values=matrix.data)


@dataclass(frozen=True, eq=False)
class Ratings:
    """Known entries of a matrix: entry k is the rating of item items[k] by user users[k].

    A pair that occurs twice counts twice.
    """

    users: NDArray[np.int32]  # (entries,) int32, 0 .. n_users - 1.
    items: NDArray[np.int32]  # (entries,) int32, 0 .. n_items - 1.
    ratings: NDArray[np.float32]  # (entries,) float32
    n_users: int  # number of users, including those without a rating here
    n_items: int  # number of items, including those without a rating here

    @property
    def n_entries(self) -> int:
        """Number of known entries."""
        return len(self.ratings)

    def take(self, entries: NDArray[Any]) -> Self:
        """A copy that has these entries, in this order."""
        return dataclasses.replace(
            self,
            users=self.users[entries],
            items=self.items[entries],
            ratings=self.ratings[entries],
        )


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph; edge k joins heads[k] and tails[k], which differ."""

    heads: NDArray[np.int32]  # (edges,) int32, 0 .. n_vertices - 1.
    tails: NDArray[np.int32]  # (edges,) int32
    weights: NDArray[np.float32]  # (edges,) float32, >= 0: the cost of cutting each edge
    n_vertices: int  # number of vertices
    terminals: Mapping[int, int]  # the label of each vertex that has one
    labels: int  # number of labels, at least 2

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.weights)
