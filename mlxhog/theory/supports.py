"""Supports of sampled gradients as bitmaps, and estimates of Omega, Delta, rho and conflict.

A sample is S supports drawn independently and uniformly from the examples (or batches) of a
problem. Omega, Delta and rho are largest values; a sample shows those among its own supports.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # least probability that the interval of p_conf holds the true value


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
