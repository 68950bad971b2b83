"""The hypergraph of a sparse problem: one edge per example, one vertex per coordinate.

    omega   Omega = max |e|                        a count
    delta   Delta = max_v |{e : v in e}| / |E|     share of the examples at the busiest coordinate
    rho     rho   = max_e |{e' : e' meets e}| / |E|    e meets itself
    p_conf  share of the pairs of distinct examples that share a coordinate

Always rho >= Delta and rho <= Omega * Delta. An example without coordinates meets no example, not
even itself: it has nothing to overwrite. `Hypergraph` has all examples, exactly; `Supports` are a
sample as bitmaps: S supports drawn independently and uniformly from the examples (or batches). A
sample shows the largest values among its own supports.

Source: Niu et al. 2011, arXiv:1106.5730, section 2 (equation 2.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native

CONFIDENCE = 0.95  # least probability that the interval of p_conf holds the true value


@dataclass(frozen=True, eq=False)
class Hypergraph:
    """The supports of all examples of a problem."""

    indptr: NDArray[np.int64]  # (|E| + 1,); edge e holds `indices[indptr[e] : indptr[e + 1]]`
    indices: NDArray[np.int32]  # coordinates in [0, n), ascending and distinct within an edge
    n: int  # number of coordinates

    @classmethod
    def from_lists(cls, edges: Iterable[Sequence[int] | NDArray[np.integer]], n: int) -> Hypergraph:
        """Return the hypergraph of edges with coordinates in any order; repetitions count once."""
        rows = [np.unique(np.asarray(edge, np.int32)) for edge in edges]
        indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(indptr, np.concatenate([np.empty(0, np.int32), *rows]), n)

    def __len__(self) -> int:
        """Number of edges |E|."""
        return len(self.indptr) - 1

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Coordinates per edge, (|E|,)."""
        return np.diff(self.indptr)

    @property
    def omega(self) -> int:
        """Largest number of coordinates of an edge."""
        return int(self.sizes.max())

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Edges per coordinate, (n,)."""
        return np.bincount(self.indices, minlength=self.n)

    @property
    def delta(self) -> float:
        """Share of the edges that hold the busiest coordinate."""
        return float(self.degrees.max()) / len(self)

    @cached_property
    def edge_degrees(self) -> NDArray[np.int64]:
        """Edges that each edge meets, itself included, (|E|,).

        Cost: for 10^5 edges of 79 Zipf coordinates a few seconds on one core; graphs (at most two
        coordinates per edge) are counted directly.
        """
        met = np.zeros(len(self), np.int64)
        if self.omega > 2:
            _native.edge_degrees(self.indptr, self.indices, self.n, met)
            return met
        sizes, start = self.sizes, self.indptr[:-1]
        single, pair = sizes == 1, sizes == 2
        met[single] = self.degrees[self.indices[start[single]]]
        u, v = self.indices[start[pair]], self.indices[start[pair] + 1]
        _, which, parallel = np.unique(
            u.astype(np.int64) * self.n + v, return_inverse=True, return_counts=True
        )
        met[pair] = self.degrees[u] + self.degrees[v] - parallel[which]
        return met

    @property
    def rho(self) -> float:
        """Largest share of the edges that one edge meets."""
        return float(self.edge_degrees.max()) / len(self)

    @property
    def p_conf(self) -> float:
        """Probability that two distinct edges, drawn uniformly, meet; 0 for a single edge."""
        meetings = int(self.edge_degrees.sum()) - int(np.count_nonzero(self.sizes))
        return meetings / (len(self) * (len(self) - 1)) if len(self) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Supports:
    """S subsets of n coordinates."""

    bits: NDArray[np.uint8]  # (S, ceil(n / 8)), C-contiguous, little bit order; 0 beyond n
    n: int  # number of coordinates, > 0

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.bits)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of coordinates in each support, (S,)."""
        sizes: NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return sizes

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of samples that touch each coordinate, (n,)."""
        counts = np.zeros(self.n, np.int64)
        for row in self.bits:
            counts += np.unpackbits(row, count=self.n, bitorder="little")
        return counts

    def meetings(self, others: Supports) -> NDArray[np.int64]:
        """Return for each sample the number of `others` that share a coordinate with it, (S,).

        A sample that is also among `others` counts itself there, unless it is empty.
        """
        met = np.zeros(len(self), np.int64)
        for sample, row in enumerate(self.bits):
            touched, left, begin, width = np.flatnonzero(row), np.arange(len(others)), 0, 64
            while begin < len(touched) and len(left):  # most meet at the first bytes, or never
                part = touched[begin : begin + width]
                meets = (others.bits[np.ix_(left, part)] & row[part]).any(axis=1)
                met[sample] += np.count_nonzero(meets)
                left, begin, width = left[~meets], begin + width, 8 * width
        return met

    @cached_property
    def met(self) -> NDArray[np.int64]:
        """For each sample the number of other samples that it meets, (S,)."""
        return self.meetings(self) - (self.sizes > 0)

    @property
    def omega(self) -> int:
        """Omega: the largest support."""
        return int(self.sizes.max())

    @property
    def delta(self) -> float:
        """Delta: share of the samples that touch the busiest coordinate."""
        return float(self.counts.max()) / len(self)

    @property
    def rho(self) -> float:
        """Rho: the largest share of the others that one sample meets; at least Delta."""
        return max(self.delta, float(self.met.max()) / (len(self) - 1))

    @property
    def p_conf(self) -> float:
        """Probability that two independent draws meet: the share of all pairs that do, unbiased."""
        return float(self.met.sum()) / (len(self) * (len(self) - 1))

    @property
    def p_conf_interval(self) -> tuple[float, float]:
        """Interval of p_conf with `CONFIDENCE`.

        These are the limits of Clopper and Pearson 1934 for floor(S / 2) disjoint pairs, which are
        independent. The share of all pairs is the average of such shares over all orders of the
        sample (Hoeffding 1963, J. Am. Stat. Assoc. 58, section 5b), so it varies less.
        """
        from scipy.special import betaincinv  # .1 s

        pairs, risk = len(self) // 2, (1.0 - CONFIDENCE) / 2

        def low(share: float) -> float:
            hits = share * pairs
            return float(betaincinv(hits, pairs - hits + 1, risk)) if hits else 0.0

        return low(self.p_conf), 1.0 - low(1.0 - self.p_conf)
