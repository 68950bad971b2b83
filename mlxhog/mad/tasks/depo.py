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

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Findings, first_place
from mlxhog.mad.tasks.task import (
    IGNORED,
    Fixed,
    Ints,
    Rows,
    Settings,
    TaskType,
    seq_len,
    too_small,
    vocab,
)

FEWEST = 3
"""Nodes of the smallest cycle."""

QUERY = 4
"""Tokens of a query with its answer."""


@dataclass(frozen=True, kw_only=True)
class Depo(Settings):
    """Settings; names are 0 .. W-1, `hop k` is W+k-1, then markers: edge, answer, begin (V-1)."""

    task: ClassVar[str] = "depo"

    vocab: int = vocab(32)
    seq_len: int = seq_len(56)
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

    @property
    def tested_hops(self) -> list[int]:
        """Hops of test rows: the powers of 2 up to K, and K."""
        powers = [1 << exponent for exponent in range(self.hops.bit_length())]
        return powers if powers[-1] == self.hops else [*powers, self.hops]

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the numbers of nodes of training rows, and their probabilities."""
        n = np.arange(FEWEST, self.nodes + 1)
        weights = 1 / (n + math.sqrt(self.nodes))
        return n, weights / weights.sum()

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        why = f"{self.nodes} names beside {self.hops} hops and three markers"
        yield from too_small("vocab", self.vocab, why, self.nodes + self.hops + 3)
        if self.queries > self.nodes:
            yield (
                f"queries is {self.queries}, and a row has {self.nodes} nodes, each the start of "
                f"one query: at most {self.nodes}"
            )
        why = f"{self.nodes} edges of {self.edge} tokens and {self.queries} queries of 4"
        least = self.edge * self.nodes + QUERY * self.queries
        yield from too_small("seq_len", self.seq_len, why, least)


def draw(
    s: Depo, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; test rows have the largest cycle, and hops of `tested_hops`."""
    sizes, share = s.sizes()
    size = rng.choice(sizes, (n, 1), p=share) if train else np.full((n, 1), s.nodes)
    row, shown = np.arange(n)[:, None], np.arange(s.nodes) < size
    cycle = rng.random((n, s.names)).argsort(axis=1)
    order, start = (
        np.where(shown, rng.random((n, s.nodes)), 2.0).argsort(axis=1) for _ in range(2)
    )
    text = np.full((n, s.seq_len + 1), s.vocab - 1, np.int32)
    edges = text[:, 1 : 1 + s.edge * s.nodes].reshape(n, s.nodes, s.edge)
    edges[shown, 0] = s.vocab - 3  # without markers it is replaced
    for place, part in ((-2, order), (-1, (order + 1) % size)):
        edges[shown, place] = cycle[row, part][shown]
    text[:, 1 : 1 + s.edge * s.nodes] = edges.reshape(n, -1)
    start, asked = start[:, : s.queries], shown[:, : s.queries]
    k = rng.choice(np.arange(1, s.hops + 1) if train else s.tested_hops, start.shape)
    answer = cycle[row, (start + k) % size]
    at = 1 + s.edge * size + QUERY * np.arange(s.queries)
    parts = (s.names - 1 + k, cycle[row, start], np.full_like(k, s.vocab - 2), answer)
    row = np.broadcast_to(row, at.shape)[asked]
    for place, part in enumerate(parts):
        text[row, at[asked] + place] = part[asked]
    y = np.full((n, s.seq_len), IGNORED, np.int32)
    y[row, at[asked] + 2] = answer[asked]
    return text[:, :-1], y


def check(s: Depo, findings: Findings, data: Dataset) -> None:
    """Apply invariants 30 to 32, and the bounds."""
    for split, (x, y) in data.splits().items():
        if findings.has_width(30, split, x, s.seq_len):
            _check_rows(s, findings, split, x, y)
    chance = 0.0
    for n, share in zip(*(part.tolist() for part in s.sizes()), strict=True):
        m = min(n, s.queries)
        cycles = _log_arrangements(s.names, n) - math.log(n) + math.lgamma(n + 1)
        chance += math.exp(
            2 * math.log(share) - cycles - _log_arrangements(n, m) - m * math.log(s.hops)
        )
    findings.duplicates(data, chance)


def _log_arrangements(n: int, k: int) -> float:
    """Return the logarithm of the number of ways to draw k of n things in an order."""
    return math.lgamma(n + 1) - math.lgamma(n - k + 1)


def _check_rows(s: Depo, findings: Findings, split: str, x: Ints, y: Ints) -> None:
    T, V, W, train = s.seq_len, s.vocab, s.names, split == "train"
    row, at = np.arange(len(x))[:, None], np.arange(T + 1)
    text = np.concatenate([x, np.where(y[:, -1:] == IGNORED, V - 1, y[:, -1:])], axis=1)
    name, hop = (text >= 0) & (text < W), (text >= W) & (text < V - 3)
    size = (hop.argmax(axis=1)[:, None] - 1) // s.edge
    queries = np.minimum(size, s.queries)
    place = at - 1 - s.edge * size  # from the first query on
    asked = (place >= 0) & (place < QUERY * queries)
    right = np.where((at > 0) & (place < 0), name, text == V - 1)
    if s.marked:
        right = np.where((at > 0) & (place < 0) & (place % s.edge == 0), text == V - 3, right)
    for part, kind in enumerate((hop, name, text == V - 2, name)):
        right = np.where(asked & (place % QUERY == part), kind, right)
    fewest = FEWEST if train else s.nodes
    sized = (size[:, 0] >= fewest) & (size[:, 0] <= s.nodes)

    def say_layout(number: int) -> str:
        if not sized[number]:
            return f"{size[number, 0]} edges before the queries, expected {fewest}..{s.nodes}"
        where = first_place(~right[number])
        return (
            f"token {text[number, where]} at {where}; expected the begin marker {V - 1}, "
            f"{size[number, 0]} edges, {queries[number, 0]} queries `hop start {V - 2} answer`, "
            f"then {V - 1}"
        )

    good = findings.rows(30, split, ~right.all(1) | ~sized, say_layout, np.ones(len(x), bool))
    after = _successors(s, text, size, good)
    first = np.where(good, text[:, s.edge - 1], 0)
    ends = first
    visited = np.zeros((len(x), W + 1), bool)
    for step in range(s.nodes):
        going = good & (step < size[:, 0])
        visited[going, ends[going]] = True
        ends = np.where(going, after[row[:, 0], ends], ends)
    closed = (ends == first) & (visited[:, :W].sum(1) == size[:, 0])
    good = findings.rows(
        31,
        split,
        ~closed,
        lambda number: f"the {size[number, 0]} edges are not one cycle through all of their nodes",
        good,
    )
    _check_queries(s, findings, split, text, y, size, after, good)


def _successors(s: Depo, text: Ints, size: Ints, good: Bools) -> Ints:
    """Return the node after each name (rows, W + 1); W without one."""
    after = np.full((len(text), s.names + 1), s.names)
    for edge in range(s.nodes):
        there = np.flatnonzero(good & (edge < size[:, 0]))
        to = s.edge * (edge + 1)
        after[there, text[there, to - 1]] = text[there, to]
    return after


def _check_queries(
    s: Depo,
    findings: Findings,
    split: str,
    text: Ints,
    y: Ints,
    size: Ints,
    after: Ints,
    good: Bools,
) -> None:
    """Invariant 32, of the hops, the start nodes and the answers."""
    at = 1 + s.edge * size + QUERY * np.arange(s.queries)
    asked = good[:, None] & (np.arange(s.queries) < size)
    row, at = np.nonzero(asked)[0], at[asked]
    hop, start, answer = text[row, at] - s.names + 1, text[row, at + 1], text[row, at + 3]
    expected = start
    for step in range(s.nodes):
        expected = np.where(step < hop % size[row, 0], after[row, expected], expected)
    times = np.zeros((len(text), s.names + 1), int)
    np.add.at(times, (row, start), 1)
    known = times[row, start] == 1
    known &= after[row, start] < s.names
    if split != "train":
        known &= np.isin(hop, s.tested_hops)
    bad = np.zeros(len(text), bool)
    bad[row[~known | (answer != expected)]] = True

    def say(number: int) -> str:
        query = int(np.flatnonzero((row == number) & (~known | (answer != expected)))[0])
        what = f"{hop[query]} hops from {start[query]} at {at[query]}"
        if not known[query]:
            hops = f"1..{s.hops}" if split == "train" else s.tested_hops
            return f"{what}; expected hops of {hops}, from a node that no other query has"
        return f"{what} have answer {answer[query]}, expected {expected[query]}"

    good = findings.rows(32, split, bad, say, good)
    targets = np.full(y.shape, IGNORED)
    targets[row, at + 2] = answer
    good = findings.targets(32, split, y, targets, good)
    if good.sum() >= ENOUGH_ROWS:
        kept = good[row]
        findings.uniform("uniform nodes", split, start[kept], 0, s.names)
        hops = np.arange(1, s.hops + 1) if split == "train" else np.array(s.tested_hops)
        drawn = np.searchsorted(hops, hop[kept])
        findings.uniform("uniform hops", split, drawn, 0, len(hops))
        if split == "train":
            sizes, share = s.sizes()
            findings.mean(
                "mean number of nodes", split, size[good, 0], float((sizes * share).sum())
            )


DEPO = TaskType(
    "depo",
    "D",
    Depo,
    draw,
    check=check,
    about="the node k edges further along a cycle, whose edges are shown in a random order",
    sudden=True,
)
