"""The hypergraph of a sparse problem: one edge per example, one vertex per coordinate.

    omega   Omega = max |e|                        a count
    delta   Delta = max_v |{e : v in e}| / |E|     share of the examples at the busiest coordinate
    rho     rho   = max_e |{e' : e' overlaps e}| / |E|    e overlaps itself
    p_conf  share of the pairs of distinct examples that share a coordinate

Always rho >= Delta and rho <= Omega * Delta. An example without coordinates overlaps none, not
even itself: it has nothing to overwrite. The edges are all examples, or a sample: supports drawn
independently and uniformly from the examples (or batches), which shows the largest values among
its own.

Source: Niu et al. 2011, arXiv:1106.5730, section 2 (equation 2.6).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # least probability that the interval of p_conf holds the true value

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Hypergraph:
    """Edges, by the coordinates that each touches, and the edges that it overlaps."""

    sizes: Int64  # coordinates per edge, (|E|,)
    degrees: Int64  # edges per coordinate, (n,)
    edge_degrees: Int64  # edges that each edge overlaps, itself included, (|E|,)

    @classmethod
    def of_lists(cls, edges: Iterable[Sequence[int] | NDArray[np.integer]], n: int) -> Self:
        """Return the hypergraph of edges with coordinates in any order; repetitions count once.

        Cost: 4,096 edges of a thousand coordinates take some seconds on one core.
        """
        rows = [np.unique(np.asarray(edge, np.int64)) for edge in edges]
        sizes = np.array([len(row) for row in rows], np.int64)
        indices = np.concatenate([np.empty(0, np.int64), *rows])
        vertices, at = np.unique(indices, return_inverse=True)
        edge = np.repeat(np.arange(len(rows)), sizes)
        holders = np.zeros((len(vertices), -(-len(rows) // 64)), np.uint64)  # edges as bits
        np.bitwise_or.at(holders.view(np.uint8), (at, edge >> 3), (1 << (edge & 7)).astype("u1"))
        overlaps = [
            np.bitwise_count(np.bitwise_or.reduce(holders[row])).sum()
            for row in np.split(at, np.cumsum(sizes)[:-1])
        ]
        return cls(sizes, np.bincount(indices, minlength=n), np.array(overlaps, np.int64))

    @classmethod
    def of_bitmaps(cls, bits: NDArray[np.uint8], n: int) -> Self:
        """Return the hypergraph of few edges of many coordinates.

        `bits` is (|E|, ceil(n / 8)), C-contiguous, in little bit order, 0 beyond n > 0.
        """
        degrees, overlaps = np.zeros(n, np.int64), np.zeros(len(bits), np.int64)
        for edge, row in enumerate(bits):
            degrees += np.unpackbits(row, count=n, bitorder="little")
            touched, left, begin, width = np.flatnonzero(row), np.arange(len(bits)), 0, 64
            while begin < len(touched) and len(left):  # most overlap at the first bytes, or never
                part = touched[begin : begin + width]
                hits = (bits[np.ix_(left, part)] & row[part]).any(axis=1)
                overlaps[edge] += np.count_nonzero(hits)
                left, begin, width = left[~hits], begin + width, 8 * width
        return cls(np.bitwise_count(bits).sum(axis=1, dtype=np.int64), degrees, overlaps)

    def __len__(self) -> int:
        """Number of edges |E|."""
        return len(self.sizes)

    @property
    def omega(self) -> int:
        """Largest number of coordinates of an edge."""
        return int(self.sizes.max())

    @property
    def delta(self) -> float:
        """Share of the edges that hold the busiest coordinate."""
        return float(self.degrees.max()) / len(self)

    @property
    def rho(self) -> float:
        """Largest share of the edges that one edge overlaps."""
        return float(self.edge_degrees.max()) / len(self)

    @property
    def sampled_rho(self) -> float:
        """Largest share of the others that one edge of a sample overlaps; at least Delta."""
        others = (self.edge_degrees - (self.sizes > 0)).max()
        return max(self.delta, float(others) / (len(self) - 1))

    @property
    def p_conf(self) -> float:
        """Probability that two distinct edges overlap, unbiased; 0 for a single edge."""
        pairs = int(self.edge_degrees.sum()) - int(np.count_nonzero(self.sizes))
        return pairs / (len(self) * (len(self) - 1)) if len(self) > 1 else 0.0

    @property
    def p_conf_interval(self) -> tuple[float, float]:
        """Interval of p_conf of a sample, with `CONFIDENCE`.

        These are the limits of Clopper and Pearson 1934 for floor(|E| / 2) disjoint pairs, which
        are independent. The share of all pairs is the average of such shares over all orders of the
        sample (Hoeffding 1963, J. Am. Stat. Assoc. 58, section 5b), so it varies less.
        """
        from scipy.special import betaincinv  # .1 s

        pairs, risk = len(self) // 2, (1.0 - CONFIDENCE) / 2

        def low(share: float) -> float:
            hits = share * pairs
            return float(betaincinv(hits, pairs - hits + 1, risk)) if hits else 0.0

        return low(self.p_conf), 1.0 - low(1.0 - self.p_conf)
