"""Hops along a cycle in the context, and arithmetic whose tables only the parameters can hold.

Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351, and its generators of Depo
and Mano, which are the models of the statistics.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.data.batch import IGNORED
from mlxhog.mad.tasks.task import Fixed, Ints, Rng, Rows, Task

MIN_NODES = 3
"""Nodes of the smallest cycle."""

QUERY = 4
"""Tokens of a query with its answer."""


@dataclass(frozen=True, kw_only=True)
class Depo(Task):
    """Depo: the node k edges further along a directed cycle, whose edges are in a random order.

        row:   begin | n edges | min(n, M) queries | begin markers to the end
        edge:  edge marker (with `marked`) | from | to
        query: hop k | start | answer marker | answer

    The answer is the target of the answer marker, and the only one of a query; the reference also
    trains on the marker, which is certain. Training rows have n = 3 .. N nodes with weights 1 / (n
    + sqrt(N)) and k uniform over 1 .. K; test rows have N nodes and k among the powers of 2 and K.
    The start nodes of a row are different. Names have one token here; the reference also has longer
    ones, and 24 among the tested hops if K is 32.

    Names are 0 .. W-1, `hop k` is W+k-1, then markers: edge, answer, begin (V-1).
    """

    name: ClassVar[str] = "depo"
    short: ClassVar[str] = "D"
    about: ClassVar[str] = (
        "the node k edges further along a cycle, whose edges are shown in a random order"
    )
    phase_transition: ClassVar[bool] = True

    vocab: int = 32
    seq_len: int = 56
    nodes: int = option(8, "N, nodes of the largest cycle", low=MIN_NODES)
    hops: int = option(2, "K, edges of the longest path that is asked for", low=1)
    queries: int = option(8, "M, queries per sequence, each from its own node", low=1)
    marked: bool = option(True, "begin each edge with a marker")

    @property
    def names(self) -> int:
        """W, the number of names."""
        return self.vocab - self.hops - 3

    @property
    def edge(self) -> int:
        """Tokens of an edge."""
        return 3 if self.marked else 2

    def broken_rules(self) -> Iterator[str]:
        why = f"{self.nodes} names beside {self.hops} hops and three markers"
        yield from self.at_least("vocab", self.nodes + self.hops + 3, why)
        yield from self.at_least("nodes", self.queries, "each query of a row starts at its own")
        why = f"{self.nodes} edges of {self.edge} tokens and {self.queries} queries of {QUERY}"
        yield from self.at_least("seq_len", self.edge * self.nodes + QUERY * self.queries, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        sizes = np.arange(MIN_NODES, self.nodes + 1)
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


OPERATIONS = 3
FRAME = 4
"""Tokens of a problem beside its expression."""


@dataclass(frozen=True, kw_only=True)
class Mano(Task):
    """Mano: arithmetic modulo p on random expressions, whose tables only the parameters can hold.

        row:     problems one after the other, as many as fit, then begin markers to the end
        problem: begin | `l operations` | expression of l operations | answer marker | answer

    The answer is the target of the answer marker, and the only one of a problem. Training rows have
    l uniform over 1 .. L, test rows L operations. An expression of l operations is, in prefix form,
    one of + - * and two expressions, the first of which has 0 .. l-1 of the other l-1 operations,
    uniformly; one of 0 operations is a uniform number below p.

    The reference packs problems as it packs texts, trains on every token, has a second,
    interchangeable name for each marker and operation, and repeats l in the answer marker.

    Numbers are 0 .. p-1, then + - *, then `l operations`; V-2 is the answer marker. V-1 is the
    begin marker.
    """

    name: ClassVar[str] = "mano"
    short: ClassVar[str] = "MA"
    about: ClassVar[str] = (
        "arithmetic modulo p on random expressions, whose tables only the parameters hold"
    )

    seq_len: int = 64
    modulus: int = option(7, "p, the modulus", low=2)
    operations: int = option(2, "L, operations of the longest expression", low=1, high=256)

    @property
    def longest(self) -> int:
        """Tokens of a problem of L operations."""
        return FRAME + 2 * self.operations + 1

    def broken_rules(self) -> Iterator[str]:
        why = f"{self.modulus} numbers, + - *, {self.operations} lengths and two markers"
        least = self.modulus + OPERATIONS + self.operations + 2
        yield from self.at_least("vocab", least, why)
        why = f"a problem of {self.operations} operations, whose answer is a target only"
        yield from self.at_least("seq_len", self.longest - 1, why)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        T, p, L = self.seq_len, self.modulus, self.operations
        most = (T + 1) // (FRAME + 3 if train else self.longest)
        length = rng.integers(1, L + 1, (n, most)) if train else np.full((n, most), L)
        end = (FRAME + 1 + 2 * length).cumsum(axis=1)
        fits = end <= T + 1
        row, length, end = np.nonzero(fits)[0], length[fits], end[fits]
        tokens = _expressions(self, rng, length)
        answer = value(self, tokens)
        text = np.full((n, T + 1), self.vocab - 1, np.int32)
        text[row, end - 2 * length - FRAME] = p + OPERATIONS - 1 + length
        inside = np.arange(2 * L + 1) <= 2 * length[:, None]
        at = end[:, None] - 2 * length[:, None] - FRAME + 1 + np.arange(2 * L + 1)
        text[np.broadcast_to(row[:, None], at.shape)[inside], at[inside]] = tokens[inside]
        text[row, end - 2] = self.vocab - 2
        text[row, end - 1] = answer
        y = np.full((n, T), IGNORED, np.int32)
        y[row, end - 2] = answer
        return text[:, :-1], y


def _expressions(s: Mano, rng: Rng, length: Ints) -> Ints:
    """Draw expressions of `length` operations (n,): tokens (n, 2 L + 1), of which 2 l + 1 count."""
    n, width, row = len(length), 2 * s.operations + 1, np.arange(len(length))
    tokens = rng.integers(0, s.modulus, (width, n))
    operations = rng.integers(s.modulus, s.modulus + OPERATIONS, (width, n))
    cut = rng.random((width, n))
    sizes = np.zeros((width + 1, n), np.int64)  # operations of the expression that begins there
    sizes[0] = length
    for at in range(width - 1):
        size = sizes[at].copy()
        inner = size > 0
        first = (cut[at] * size).astype(np.int64)
        sizes[at + 1] = np.where(inner, first, sizes[at + 1])
        sizes[np.where(inner, at + 2 * first + 2, width), row] = size - 1 - first
        tokens[at] = np.where(inner, operations[at], tokens[at])
    return tokens.T


def value(s: Mano, tokens: Ints) -> Ints:
    """Return the values (n,) of tokens (n, width) that begin with an expression in prefix form."""
    width, row = tokens.shape[1], np.arange(len(tokens))
    values = np.zeros((width + 1, len(tokens)), np.int64)  # of the expression that begins there
    spans = np.ones((width + 1, len(tokens)), np.int64)  # its tokens
    for at in reversed(range(width)):
        token, first = tokens[:, at], spans[at + 1]
        right = np.minimum(at + 1 + first, width)
        a, b = values[at + 1], values[right, row]
        plus_minus = np.where(token == s.modulus, a + b, a - b)
        result = np.where(token == s.modulus + 2, a * b, plus_minus) % s.modulus
        number = token < s.modulus
        values[at] = np.where(number, token, result)
        spans[at] = np.where(number, 1, np.minimum(1 + first + spans[right, row], width))
    whole: Ints = values[0]
    return whole
