"""The data of the classic problems: arrays that were checked when they were put together."""

from mlxhog.classic.datasets.dense_rows import DenseRows
from mlxhog.classic.datasets.graph import Graph
from mlxhog.classic.datasets.labels import LabelKind
from mlxhog.classic.datasets.ratings import Ratings
from mlxhog.classic.datasets.sparse_rows import SparseRows

__all__ = ["DenseRows", "Graph", "LabelKind", "Ratings", "SparseRows"]
