"""Depo: the node k edges further along a directed cycle, whose edges are shown in a random order.

    row:   begin | n edges | min(n, M) queries | begin markers to the end
    edge:  edge marker (with `marked`) | from | to
    query: hop k | start | answer marker | answer

The answer is the target of the answer marker, and the only one of a query; the reference also
trains on the marker, which is certain. Training rows have n = 3 .. N nodes with weights
1 / (n + sqrt(N)) and k uniform over 1 .. K; test rows have N nodes and k among the powers of 2 and
K. The start nodes of a row are different. Names have one token here; the reference also has longer
ones, and 24 among the tested hops if K is 32.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351, and its generator of Depo,
which is the model of the statistics.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import IGNORED, Fixed, Rng, Rows, Task

FEWEST = 3
"""Nodes of the smallest cycle."""

QUERY = 4
"""Tokens of a query with its answer."""


@dataclass(frozen=True, kw_only=True)
class Depo(Task):
    """The task; names are 0 .. W-1, `hop k` is W+k-1, then markers: edge, answer, begin (V-1)."""

    name: ClassVar[str] = "depo"
    short: ClassVar[str] = "D"
    about: ClassVar[str] = (
        "the node k edges further along a cycle, whose edges are shown in a random order"
    )
    sudden: ClassVar[bool] = True

    vocab: int = 32
    seq_len: int = 56
    nodes: int = option(8, "N, nodes of the largest cycle", low=FEWEST)
    hops: int = option(2, "K, most edges from the start of a query to its answer", low=1)
    queries: int = option(8, "M, queries of a row, one for a node", low=1)
    marked: bool = option(True, "a marker begins each edge")

    @property
    def names(self) -> int:
        """W."""
        return self.vocab - self.hops - 3

    @property
    def edge(self) -> int:
        """Tokens of an edge."""
        return 3 if self.marked else 2

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        why = f"{self.nodes} names beside {self.hops} hops and three markers"
        yield from self.at_least("vocab", self.nodes + self.hops + 3, why)
        yield from self.at_least("nodes", self.queries, "each query of a row starts at its own")
        why = f"{self.nodes} edges of {self.edge} tokens and {self.queries} queries of {QUERY}"
        yield from self.at_least("seq_len", self.edge * self.nodes + QUERY * self.queries, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; test rows have the largest cycle, and hops of the powers of 2, and K."""
        sizes = np.arange(FEWEST, self.nodes + 1)
        weights = 1 / (sizes + math.sqrt(self.nodes))
        share = weights / weights.sum()
        size = rng.choice(sizes, (n, 1), p=share) if train else np.full((n, 1), self.nodes)
        row, shown = np.arange(n)[:, None], np.arange(self.nodes) < size
        cycle = rng.random((n, self.names)).argsort(axis=1)
        order, start = (
            np.where(shown, rng.random((n, self.nodes)), 2.0).argsort(axis=1) for _ in range(2)
        )
        text = np.full((n, self.seq_len + 1), self.vocab - 1, np.int32)
        edges = text[:, 1 : 1 + self.edge * self.nodes].reshape(n, self.nodes, self.edge)
        edges[shown, 0] = self.vocab - 3  # without markers it is replaced
        for place, part in ((-2, order), (-1, (order + 1) % size)):
            edges[shown, place] = cycle[row, part][shown]
        text[:, 1 : 1 + self.edge * self.nodes] = edges.reshape(n, -1)
        start, asked = start[:, : self.queries], shown[:, : self.queries]
        hops = np.arange(1, self.hops + 1)
        tested = (hops & (hops - 1) == 0) | (hops == self.hops)
        k = rng.choice(hops if train else hops[tested], start.shape)
        answer = cycle[row, (start + k) % size]
        at = 1 + self.edge * size + QUERY * np.arange(self.queries)
        parts = (self.names - 1 + k, cycle[row, start], np.full_like(k, self.vocab - 2), answer)
        row = np.broadcast_to(row, at.shape)[asked]
        for place, part in enumerate(parts):
            text[row, at[asked] + place] = part[asked]
        y = np.full((n, self.seq_len), IGNORED, np.int32)
        y[row, at[asked] + 2] = answer[asked]
        return text[:, :-1], y
