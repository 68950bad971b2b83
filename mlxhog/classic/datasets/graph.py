"""A weighted graph of which some vertices have a label: what a multiway cut starts from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
class Graph:
    """An undirected graph; edge k joins heads[k] and tails[k].

    Attributes:
        heads: (edges,) int32, 0 .. n_vertices - 1.
        tails: (edges,) int32; never the head of the same edge.
        weights: (edges,) float32, finite, >= 0: what cutting the edge costs.
        n_vertices: number of vertices.
        terminals: the label of each vertex that has one.
        labels: number of labels, at least 2.

    Raises:
        DataError: at construction, for anything else; the message names the edge.
    """

    heads: NDArray[np.int32]
    tails: NDArray[np.int32]
    weights: NDArray[np.float32]
    n_vertices: int
    terminals: Mapping[int, int]
    labels: int

    def __post_init__(self) -> None:
        """Convert to the declared types without loss, and check."""
        object.__setattr__(self, "heads", integers("heads", self.heads, np.int32))
        object.__setattr__(self, "tails", integers("tails", self.tails, np.int32))
        object.__setattr__(self, "weights", numbers("weights", self.weights))
        same_length(heads=self.heads, tails=self.tails, weights=self.weights)
        if self.n_edges == 0:
            raise DataError("a graph with no edges: there is nothing to cut")
        within("heads", self.heads, self.n_vertices, "vertices")
        within("tails", self.tails, self.n_vertices, "vertices")
        refuse_non_finite(self.weights, lambda at: f"edge {at}: the weight")
        refuse_first(
            self.heads == self.tails,
            lambda edge: f"edge {edge} joins vertex {self.heads[edge]} with itself; leave it out",
        )
        refuse_first(
            self.weights < 0,
            lambda edge: f"edge {edge} has weight {self.weights[edge]:g}; wanted none below 0",
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
                raise DataError(f"terminal {vertex} is no vertex of 0..{self.n_vertices - 1}")
            if not 0 <= label < self.labels:
                raise DataError(f"terminal {vertex} has label {label}; wanted 0..{self.labels - 1}")
