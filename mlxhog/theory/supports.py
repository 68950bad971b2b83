"""Supports of sampled gradients as bitmaps, and estimates of Omega, Delta, rho and conflict.

A sample is S supports drawn independently and uniformly from the examples (or batches) of a
problem. Intervals are valid at every S, without a normal approximation. Omega and rho are largest
values over all examples, which no sample bounds from above: a sample gives a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.errors import DataError, ShapeError
from mlxhog.theory.stats import binomial_high, binomial_low, pairs_high, pairs_low

CONFIDENCE = 0.95
"""Least probability that an interval holds the true value; half of the risk goes to each end."""


@dataclass(frozen=True, eq=False)
class Supports:
    """S subsets of n coordinates.

    Attributes:
        bits: (S, ceil(n / 8)) uint8, C-contiguous; coordinate v of sample s is bit `v % 8`, counted
            from the lowest, of `bits[s, v // 8]`. Bits beyond n are 0.
        n: number of coordinates, > 0.

    Raises:
        ShapeError: `bits` has another shape or type.
    """

    bits: NDArray[np.uint8]
    n: int

    def __post_init__(self) -> None:
        """Check the bitmaps."""
        bits, n = self.bits, self.n
        if n < 1 or bits.dtype != np.uint8 or bits.ndim != 2 or bits.shape[1] != (n + 7) // 8:
            raise ShapeError(
                f"supports of {n} coordinates have bits of shape {bits.shape} and type "
                f"{bits.dtype}; wanted (samples, {(n + 7) // 8}) uint8"
            )
        object.__setattr__(self, "bits", np.ascontiguousarray(bits))

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.bits)

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of coordinates in each support, (S,)."""
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

        Raises:
            ShapeError: `others` has other coordinates.
        """
        if others.n != self.n:
            raise ShapeError(f"supports over {self.n} and over {others.n} coordinates do not meet")
        met = np.zeros(len(self), np.int64)
        _native.bitmap_meetings(self.bits, others.bits, met)
        return met

    @cached_property
    def halves(self) -> tuple[Supports, Supports]:
        """The sample, divided at random in two halves.

        Raises:
            DataError: fewer than 4 samples.
        """
        if len(self) < 4:
            raise DataError(f"{len(self)} sampled supports are too few to estimate; draw 4 or more")
        order, half = np.random.default_rng(0).permutation(len(self)), len(self) // 2
        return Supports(self.bits[order[:half]], self.n), Supports(self.bits[order[half:]], self.n)


@dataclass(frozen=True)
class Estimate:
    """One quantity: its value, and an interval with `CONFIDENCE`."""

    value: float
    low: float
    high: float


def estimate_omega(supports: Supports) -> Estimate:
    """Omega: the largest support in the sample, a lower bound."""
    largest = float(supports.sizes().max())
    return Estimate(largest, largest, float(supports.n))


def estimate_delta(supports: Supports) -> Estimate:
    """Delta: share of the examples that touch the busiest coordinate.

    The coordinate is chosen on one half of the sample and its share measured on the other half, so
    that the choice does not inflate the value. Low is Clopper and Pearson's limit on that half.
    High is their limit for the largest count of the whole sample: the truly busiest coordinate
    need not be the chosen one, but its count is at most that, and the limit grows with the count.

    Raises:
        DataError: fewer than 4 samples.
    """
    risk = (1.0 - CONFIDENCE) / 2
    first, second = supports.halves
    touched = int(second.counts[int(first.counts.argmax())])
    most = int((first.counts + second.counts).max())
    return Estimate(
        touched / len(second),
        binomial_low(touched, len(second), risk),
        binomial_high(most, len(supports), risk),
    )


def estimate_p_conf(supports: Supports) -> Estimate:
    """Probability that the supports of two independent draws meet: the share of all pairs that do.

    The value is unbiased (a U-statistic); the interval is `pairs_low` and `pairs_high`.

    Raises:
        DataError: fewer than 4 samples.
    """
    samples, risk = sum(map(len, supports.halves)), (1.0 - CONFIDENCE) / 2
    nonempty = np.count_nonzero(supports.sizes())
    share = float(supports.meetings(supports).sum() - nonempty) / (samples * (samples - 1))
    return Estimate(share, pairs_low(share, samples, risk), pairs_high(share, samples, risk))


def estimate_rho(supports: Supports, *, omega: int | None = None) -> Estimate:
    """Rho: the largest share of the examples that one example meets; a lower bound.

    The sample that meets most others in its own half is tested against the other half, whose
    meetings are independent trials (Clopper and Pearson). High: omega * Delta, with Delta's upper
    limit. The value is at least Delta's: all examples of the busiest coordinate meet there.

    Args:
        supports: the sample, at least 4.
        omega: the largest possible support, if known; else n.

    Raises:
        DataError: fewer than 4 samples.
    """
    first, second = supports.halves
    chosen = int(first.meetings(first).argmax())
    met, delta = int(first.meetings(second)[chosen]), estimate_delta(supports)
    share = met / len(second)
    low = binomial_low(met, len(second), (1.0 - CONFIDENCE) / 2)
    return Estimate(
        max(share, delta.value),
        max(low, delta.low) if share < delta.value else low,
        min(1.0, (supports.n if omega is None else omega) * delta.high),
    )
