"""The interface of a classic problem: f(x) = sum of f_e(x_e), its data, a native loop over the e.

`run.train` puts parameters and data into one arena. Every worker maps it and builds the native
problem over those views, so the data are read once and nothing large is sent to a worker.
Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog import _native

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ProblemMemory:
    """The arena as a native problem sees it."""

    params: Mapping[str, Float32]  # by name, in the shape of their initial values; shared bytes
    data: Mapping[str, NDArray[Any]]  # by name, as `Problem.data` had them; read-only
    row_word0: Mapping[str, int]  # by name, the lock word of a parameter's row 0


Kernel = Callable[[ProblemMemory], Any]
"""Builds the native problem over the arena's memory; picklable and small: workers get it.

Its `run(strategy, order, gamma, batch)` takes a step for each `batch` examples of `order`; returns
the examples done, which are fewer only if the stop word was set.
"""


def build(memory: ProblemMemory, native: str, rows: Sequence[str] = (), **options: Any) -> Any:
    """Build a native problem, a `Kernel`; `rows` are parameters whose lock words it takes."""
    words = {f"{name}_word0": memory.row_word0[name] for name in rows}
    return getattr(_native, native)(**memory.params, **memory.data, **words, **options)


@dataclass(frozen=True)
class Defaults:
    """A problem's default settings, chosen so that its objective converges."""

    lr: float  # learning rate gamma_0 of the first epoch
    beta: float  # factor on the learning rate after every epoch
    epochs: int  # over the examples
    batch_size: int = 1  # examples whose mean gradient is one step
    writes: tuple[str, ...] = ("lossless", "racy")  # values of `--write`, the recommended one first


class Problem(Protocol):
    """A problem with its data, in the host."""

    @property
    def name(self) -> str:
        """Its name on the command line, such as "svm"."""

    @property
    def about(self) -> str:
        """A short description of the data with their sizes."""

    @property
    def n_examples(self) -> int:
        """Number of training examples, the e of the sum."""

    @property
    def defaults(self) -> Defaults:
        """Default learning rates, epochs and mini-batch."""

    @property
    def kernel(self) -> Kernel:
        """Builds the native problem in a worker."""

    def initial(self, seed: int) -> Mapping[str, Float32]:
        """The parameters by name, each rows (n, width) behind a lock word; the same for a seed."""

    def data(self) -> Mapping[str, NDArray[Any]]:
        """The training data by name; copied into the arena once."""

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective, then measures such as "test_error", in float64; they may be NaN."""

    def supports(self) -> tuple[Int64, Int32, int]:
        """The hypergraph: (indptr, indices, n); example e touches indices[indptr[e]:indptr[e+1]].

        Indices count coordinates of x, or rows of x if the problem updates whole rows.
        """


# -- examples made of two rows and a number --------------------------------------------------------


def pack_pairs(first: Int32, second: Int32, values: ArrayLike) -> Int32:
    """Pack examples as (n, 3) int32: both rows, and the bits of the float32 value.

    So a randomly chosen example costs one cache miss; three arrays would cost three.
    """
    table = np.empty((len(first), 3), dtype=np.int32)
    table[:, 0] = first
    table[:, 1] = second
    table[:, 2] = np.ascontiguousarray(values, dtype=np.float32).view(np.int32)
    return table


def pair_supports(first: Int32, second: Int32) -> tuple[Int64, Int32]:
    """(indptr, indices) of the hypergraph whose edges are these pairs of rows, lower row first."""
    indptr = np.arange(0, 2 * len(first) + 1, 2, dtype=np.int64)
    return indptr, np.sort(np.stack([first, second], axis=1), axis=1).reshape(-1).astype(np.int32)


# -- the data, as the generators and loaders make them ---------------------------------------------

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
        return replace(chosen, labels=self.labels[rows])

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
        return replace(self, indptr=indptr, indices=indices, values=matrix.data)


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
        return replace(
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
