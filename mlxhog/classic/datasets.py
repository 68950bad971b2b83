"""The data of the classic problems: arrays that are checked at construction."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog.errors import DataError

# -- checks: each makes one pass over the array and names the first invalid entry ------------------


def integers(name: str, values: ArrayLike, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """`values` as a contiguous vector of `dtype`; a value out of range is an error."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name} have shape {array.shape}; wanted one dimension")
    if array.size and array.dtype.kind not in "iub":
        raise DataError(f"{name} are {array.dtype}; they must be integers")
    limits = np.iinfo(dtype)
    if array.dtype != dtype and array.size:
        refuse_first(
            (array < limits.min) | (array > limits.max),
            lambda at: f"{name}[{at}] is {array[at]}, which {np.dtype(dtype)} cannot hold",
        )
    return np.ascontiguousarray(array, dtype=dtype)


def numbers(name: str, values: ArrayLike, dimensions: int = 1) -> NDArray[np.float32]:
    """`values` as contiguous float32; a value out of range becomes infinite."""
    array = np.asarray(values)
    if array.ndim != dimensions:
        raise DataError(f"{name} have shape {array.shape}; wanted {dimensions} dimension(s)")
    if array.dtype.kind not in "iubf":
        raise DataError(f"{name} are {array.dtype}; they must be numbers")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def refuse_non_finite(array: NDArray[np.float32], describe: Callable[..., str]) -> None:
    """Refuse NaN and infinities; `describe(*index)` names the place of the first one."""
    # In float64 a sum of float32 numbers is finite only if all are: one fast pass.
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    refuse_first(
        ~np.isfinite(array), lambda *at: f"{describe(*at)} is {array[at]}; wanted a finite number"
    )


def refuse_outside(name: str, indices: NDArray[Any], count: int, of: str) -> None:
    """Refuse an index that is not in [0, count)."""
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        refuse_first(
            (indices < 0) | (indices >= count),
            lambda at: f"{name}[{at}] is {indices[at]}; wanted 0..{count - 1}, for {count} {of}",
        )


def same_length(**arrays: NDArray[Any]) -> None:
    """Refuse vectors of different lengths."""
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise DataError(f"{lengths}: these numbers must be equal")


def refuse_first(wrong: NDArray[np.bool_], message: Callable[..., str]) -> None:
    """Raise DataError with `message(*index)` of the first True in `wrong`, if there is one."""
    flat = int(np.argmax(wrong)) if wrong.size else 0
    if wrong.size and wrong.flat[flat]:
        raise DataError(message(*(int(at) for at in np.unravel_index(flat, wrong.shape))))


# -- labels ----------------------------------------------------------------------------------------

LabelKind = Literal["signs", "classes", "numbers"]
"""`signs`: -1 or +1. `classes`: 0 .. n_classes - 1. `numbers`: regression targets."""


def check_labels(labels: NDArray[np.float32], kind: str, n_classes: int) -> None:
    """Refuse labels that are not of their kind; the error names the first such row.

    Args:
        labels: (rows,) finite float32.
        kind: one of `LabelKind`.
        n_classes: number of classes; 2 for signs, 0 for numbers.

    Raises:
        DataError: a label is not of its kind; the message says how to map it.
    """
    fits = {"signs": n_classes == 2, "classes": n_classes >= 2, "numbers": n_classes == 0}
    if kind not in fits:
        raise DataError(f"the kind of labels is {kind!r}; wanted one of {', '.join(fits)}")
    if not fits[kind]:
        raise DataError(f"the labels are {kind}, but the number of classes is {n_classes}")
    if kind == "signs":
        refuse_first(
            np.abs(labels) != 1.0,
            lambda row: (
                f"row {row} has label {labels[row]:g}; wanted -1 or +1. {how_to_map(labels)}"
            ),
        )
    elif kind == "classes":
        refuse_first(
            (labels < 0) | (labels >= n_classes) | (labels != np.floor(labels)),
            lambda row: (
                f"row {row} has label {labels[row]:g}; wanted a class of 0..{n_classes - 1}"
            ),
        )


def how_to_map(labels: NDArray[np.floating[Any]]) -> str:
    """Advice for labels that are not signs; its example maps the largest label to +1."""
    kinds = np.unique(labels)
    if len(kinds) > 8:
        return "Map the labels to -1 and +1, or use the problem least-squares if they are numbers"
    signs = ["-1"] * (len(kinds) - 1) + ["+1"]
    pairs = (f"{label:g}={sign}" for label, sign in zip(kinds, signs, strict=True))
    return f"Map the labels, such as --labels {','.join(pairs)}"


# -- examples with a label -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Examples that touch every coordinate, such as images.

    Attributes:
        features: (rows, n_features) float32, C order, finite.
        labels: (rows,) float32, of the kind `label_kind`.
        label_kind: kind of the labels.
        n_classes: number of classes, including those without a row; 2 for signs, 0 for numbers.
        centre: (n_features,) float32, the vector subtracted from the features of a file; or None.

    Raises:
        DataError: at construction, for anything else; the message names the row.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    label_kind: LabelKind = "numbers"
    n_classes: int = 0
    centre: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Convert to the declared types, and check."""
        object.__setattr__(self, "features", numbers("features", self.features, 2))
        object.__setattr__(self, "labels", numbers("labels", self.labels))
        rows, n_features = self.features.shape
        if rows == 0 or n_features == 0:
            raise DataError(
                f"features have shape {self.features.shape}; wanted at least one example"
            )
        if rows != len(self.labels):
            raise DataError(
                f"{rows} rows of features, but {len(self.labels)} labels; wanted a label per row"
            )
        refuse_non_finite(
            self.features, lambda row, feature: f"row {row}: the value of feature {feature}"
        )
        refuse_non_finite(self.labels, lambda row: f"row {row}: the label")
        check_labels(self.labels, self.label_kind, self.n_classes)

    @property
    def n_rows(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def n_features(self) -> int:
        """Number of features of each row."""
        return int(self.features.shape[1])

    def take(self, rows: ArrayLike) -> Self:
        """A copy that has these rows, in this order; at least one."""
        chosen = np.asarray(rows, dtype=np.int64)
        return dataclasses.replace(self, features=self.features[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Examples whose features are mostly zero; row r is entries indptr[r] .. indptr[r + 1].

    Attributes:
        indptr: (rows + 1,) int64, the first entry of each row; no row is empty.
        indices: (entries,) int32, features of each row in ascending order, each once.
        values: (entries,) float32, finite.
        labels: (rows,) float32, of the kind `label_kind`.
        n_features: number of features, at least the largest index + 1.
        label_kind: kind of the labels.
        first: number that a file gives to its lowest feature.
        number: (n_features,) int32, column of each feature of the file, from the lowest one on;
            None if the columns are in the file's order.

    Raises:
        DataError: at construction, for anything else; the message names the row.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    n_features: int
    label_kind: LabelKind = "signs"
    first: int = 1
    number: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        object.__setattr__(self, "indptr", integers("indptr", self.indptr, np.int64))
        object.__setattr__(self, "indices", integers("indices", self.indices, np.int32))
        object.__setattr__(self, "values", numbers("values", self.values))
        object.__setattr__(self, "labels", numbers("labels", self.labels))
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

    def row_of(self, entry: int) -> int:
        """The row that an entry of `indices` belongs to."""
        return int(np.searchsorted(self.indptr, entry, side="right")) - 1

    def degrees(self) -> NDArray[np.int64]:
        """(n_features,): d_u, the number of examples that have each feature."""
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

    def numbers_by_degree(self) -> NDArray[np.int32]:
        """(n_features,): rank of each feature by its number of examples; the most frequent is 0."""
        number = np.empty(self.n_features, dtype=np.int32)
        number[np.argsort(-self.degrees(), kind="stable")] = np.arange(self.n_features)
        return number

    def renumbered(self, number: NDArray[np.int32]) -> Self:
        """The same rows with feature u renumbered to number[u], a permutation of all features."""
        lengths = np.diff(self.indptr)
        indices = number[self.indices]
        keys = np.repeat(np.arange(self.n_rows) * self.n_features, lengths) + indices
        rising = np.argsort(keys)
        return dataclasses.replace(
            self, indices=indices[rising], values=self.values[rising], number=number
        )

    def _check_rows(self) -> None:
        if self.n_rows == 0:
            raise DataError("no examples: nothing can be learned from an empty data set")
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
        steps[self.indptr[1:-1] - 1] = 1  # features need not ascend from one row to the next
        not_rising = np.concatenate([[False], steps <= 0])
        if not_rising.any():
            first = int(np.argmax(not_rising))
            repeated = self.indices[first] == self.indices[first - 1]
            reason = "it occurs twice; sum its values" if repeated else "not in ascending order"
            refuse(not_rising, reason)


# -- pairs with a number ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ratings:
    """Known entries of a matrix: entry k is the rating of item items[k] by user users[k].

    A pair that occurs twice counts twice.

    Attributes:
        users: (entries,) int32, 0 .. n_users - 1.
        items: (entries,) int32, 0 .. n_items - 1.
        ratings: (entries,) float32, within [lowest, highest].
        n_users: number of users, including those without a rating here.
        n_items: number of items, including those without a rating here.
        lowest: smallest legal rating.
        highest: largest legal rating.
        user_ids: (n_users,) int64, identifiers of the users in the file; None if they are the
            user numbers.
        item_ids: (n_items,) int64, the same for items.

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
    user_ids: NDArray[np.int64] | None = None
    item_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        object.__setattr__(self, "users", integers("users", self.users, np.int32))
        object.__setattr__(self, "items", integers("items", self.items, np.int32))
        object.__setattr__(self, "ratings", numbers("ratings", self.ratings))
        same_length(users=self.users, items=self.items, ratings=self.ratings)
        if len(self.ratings) == 0:
            raise DataError("no ratings: an empty matrix cannot be completed")
        refuse_outside("users", self.users, self.n_users, "users")
        refuse_outside("items", self.items, self.n_items, "items")
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


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph; edge k joins heads[k] and tails[k].

    Attributes:
        heads: (edges,) int32, 0 .. n_vertices - 1.
        tails: (edges,) int32; the tail differs from the head of the same edge.
        weights: (edges,) float32, finite, >= 0: the cost of cutting each edge.
        n_vertices: number of vertices.
        terminals: the label of each vertex that has one.
        labels: number of labels, at least 2.
        vertex_ids: (n_vertices,) int64, identifiers of the vertices in the file; None if they are
            the vertex numbers.

    Raises:
        DataError: at construction, for anything else; the message names the edge.
    """

    heads: NDArray[np.int32]
    tails: NDArray[np.int32]
    weights: NDArray[np.float32]
    n_vertices: int
    terminals: Mapping[int, int]
    labels: int
    vertex_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        object.__setattr__(self, "heads", integers("heads", self.heads, np.int32))
        object.__setattr__(self, "tails", integers("tails", self.tails, np.int32))
        object.__setattr__(self, "weights", numbers("weights", self.weights))
        same_length(heads=self.heads, tails=self.tails, weights=self.weights)
        if self.n_edges == 0:
            raise DataError("the graph has no edges, so there is nothing to cut")
        refuse_outside("heads", self.heads, self.n_vertices, "vertices")
        refuse_outside("tails", self.tails, self.n_vertices, "vertices")
        refuse_non_finite(self.weights, lambda at: f"edge {at}: the weight")
        refuse_first(
            self.heads == self.tails,
            lambda edge: f"edge {edge} joins vertex {self.heads[edge]} with itself; leave it out",
        )
        refuse_first(
            self.weights < 0,
            lambda edge: f"edge {edge} has weight {self.weights[edge]:g}; wanted 0 or more",
        )
        self._check_terminals()

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.weights)

    def _check_terminals(self) -> None:
        if self.labels < 2:
            raise DataError(f"{self.labels} label(s); a cut separates at least 2")
        for vertex, label in self.terminals.items():
            if not 0 <= vertex < self.n_vertices:
                raise DataError(f"terminal {vertex} is not a vertex of 0..{self.n_vertices - 1}")
            if not 0 <= label < self.labels:
                raise DataError(f"terminal {vertex} has label {label}; wanted 0..{self.labels - 1}")
