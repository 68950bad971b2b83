"""Multiway graph cuts: every vertex is a point of the simplex, and edges pull their ends together.

    min over x:  sum over edges of w_uv |x_u - x_v|_1,  x_v >= 0, sum of x_v = 1,
                 terminals fixed at the vertex of their label

With two labels a vertex is one scalar, its share of label 1; if all scalars are 0 or 1, the
objective is the weight of a cut. With more labels |.|_1 counts every cut edge twice. Source: Niu et
al. 2011, Hogwild!, arXiv:1106.5730, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.errors import ConfigError
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.generators import abdomen_like
from mlxhog.research.classic.loaders import load_graph
from mlxhog.research.classic.problem import (
    Defaults,
    Float32,
    Graph,
    Int32,
    Int64,
    build,
    pack_pairs,
    pair_supports,
)

SIDE = 32
THRESHOLDS = np.linspace(0, 1, 21)


def create(name: str, config: ClassicConfig) -> "GraphCuts":
    """The problem on the graph of `config.data`, or on a generated volume."""
    if config.data is None:
        return GraphCuts(abdomen_like(config.size or SIDE, seed=config.seed), name=name)
    if config.terminals is None:
        raise ConfigError(
            f"{config.data} has no labels; give the known ones, such as --terminals 0=0,33=1"
        )
    return GraphCuts(load_graph(Path(config.data), config.terminals), name=name)


@dataclass(frozen=True, eq=False)
class GraphCuts:
    """The cheapest cut of a graph between its terminals."""

    graph: Graph  # the graph, with terminals of at least two labels
    name: str = "graph-cuts"  # name on the command line

    defaults = Defaults(lr=0.1, beta=0.97, epochs=200)
    kernel = partial(build, native="CutProblem", rows=("x",))

    @property
    def about(self) -> str:
        return (
            f"{self.graph.n_edges:,} edges between {self.graph.n_vertices:,} vertices, "
            f"{len(self.graph.terminals):,} terminals of {self.graph.labels} labels"
        )

    @property
    def n_examples(self) -> int:
        return self.graph.n_edges

    @property
    def width(self) -> int:
        """Floats per vertex: one for two labels, else one per label."""
        return 1 if self.graph.labels == 2 else self.graph.labels

    def initial(self, seed: int) -> dict[str, Float32]:
        """One row per vertex: the centre of the simplex, for any seed; terminals at their label."""
        x = np.full((self.graph.n_vertices, self.width), 1 / self.graph.labels, dtype=np.float32)
        vertices, labels = self._terminals
        x[vertices] = labels[:, None] if self.width == 1 else np.eye(self.width)[labels]
        return {"x": x}

    def data(self) -> dict[str, NDArray[Any]]:
        """Edges with their weights, and a flag for each vertex that is a terminal."""
        fixed = np.zeros(self.graph.n_vertices, dtype=np.uint8)
        fixed[self._terminals[0]] = 1
        return {"edges": self._edges, "fixed": fixed}

    def measures(self, params: Mapping[str, Float32]) -> dict[str, float]:
        """The objective, and the weight of the cut after rounding x."""
        x = params["x"]
        if self.width > 1:  # simultaneous writes may mix two rows
            x = x.copy()
            _native.project_onto_simplex(x)
        native = _native.CutProblem(x, self._edges, np.zeros(len(x), dtype=np.uint8))
        return {"objective": native.objective(x), "cut": self.cut(self.rounded(x))}

    def rounded(self, x: Float32) -> Int64:
        """(vertices,): a label for each.

        With two labels: 1 if the share of label 1 is above a threshold. With more: the label of the
        largest share, or one common label if this share is below a threshold. The threshold is the
        one with the cheapest cut.
        """
        if self.width > 1:
            largest, share = np.argmax(x, axis=1), np.max(x, axis=1)
            candidates = [np.where(share >= t, largest, self._heaviest) for t in THRESHOLDS]
            return min(candidates, key=self.cut)
        values, place = np.unique(x[:, 0], return_inverse=True)
        return (place > self._best_place(place, len(values))).astype(np.int64)

    def cut(self, labels: Int64) -> float:
        """Weight of the edges whose ends have different labels."""
        apart = labels[self.graph.heads] != labels[self.graph.tails]
        return float(self.graph.weights[apart].sum(dtype=np.float64))

    def supports(self) -> tuple[Int64, Int32, int]:
        """Two vertices per edge."""
        indptr, indices = pair_supports(self.graph.heads, self.graph.tails)
        return indptr, indices, self.graph.n_vertices

    @cached_property
    def _heaviest(self) -> int:
        """The label whose terminals have the largest total weight of edges."""
        vertices, labels = self._terminals
        ends = np.concatenate([self.graph.heads, self.graph.tails])
        around = np.bincount(ends, np.tile(self.graph.weights, 2), minlength=self.graph.n_vertices)
        return int(np.argmax(np.bincount(labels, around[vertices])))

    def _best_place(self, place: Int64, n: int) -> int:
        """The k whose cut between places 0..k and k+1..n-1 is cheapest.

        An edge between two places is cut for k from the lower place to the higher place - 1.
        """
        if n == 1:
            return 0
        ends = place[self.graph.heads], place[self.graph.tails]
        opened = np.bincount(np.minimum(*ends), self.graph.weights, minlength=n)
        closed = np.bincount(np.maximum(*ends), self.graph.weights, minlength=n)
        return int(np.argmin(np.cumsum(opened - closed)[:-1]))

    @cached_property
    def _edges(self) -> Int32:
        return pack_pairs(self.graph.heads, self.graph.tails, self.graph.weights)

    @cached_property
    def _terminals(self) -> tuple[Int64, Int64]:
        known = self.graph.terminals
        return np.array(list(known), dtype=np.int64), np.array(list(known.values()), dtype=np.int64)
