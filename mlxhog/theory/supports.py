"""Supports of sampled gradients as bitmaps, and estimates of Omega, Delta, rho and conflict.

A sample is S supports drawn independently and uniformly from the examples (or batches) of a
problem. Intervals are valid at every S, without a normal approximation. Omega and rho are largest
values over all examples, which no sample bounds from above; a sample gives a lower bound and a
quantile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.errors import DataError, ShapeError

# -- supports --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Supports:
    """S subsets of n coordinates.

    Attributes:
        bits: (S, ceil(n / 8)) uint8, C-contiguous; coordinate v of sample s is bit `v % 8`, counted
            from the lowest, of `bits[s, v // 8]`. Bits beyond n are 0.
        n: number of coordinates, > 0.

    Raises:
        ShapeError: `bits` has another shape or type, or a bit beyond n is set.
    """

    bits: NDArray[np.uint8]
    n: int

    def __post_init__(self) -> None:
        """Check the bitmaps."""
        bits, n = self.bits, self.n
        if n < 1:
            raise ShapeError(f"supports over {n} coordinates; a block has at least one")
        if bits.dtype != np.uint8 or bits.ndim != 2 or bits.shape[1] != (n + 7) // 8:
            raise ShapeError(
                f"supports of {n} coordinates have bits of shape {bits.shape} and type "
                f"{bits.dtype}; wanted (samples, {(n + 7) // 8}) uint8"
            )
        if n % 8 and (bits[:, -1] >> (n % 8)).any():
            raise ShapeError(f"supports of {n} coordinates have a coordinate {n} or above")
        if not bits.flags.c_contiguous:
            object.__setattr__(self, "bits", np.ascontiguousarray(bits))

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.bits)

    def __getitem__(self, samples: slice | NDArray[np.integer]) -> Supports:
        """Return some of the samples."""
        return Supports(self.bits[samples], self.n)

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


# -- confidence intervals of a probability ---------------------------------------------------------


def binomial_low(successes: int, trials: int, risk: float) -> float:
    """Lower confidence limit of a probability: exceeds it in at most `risk` of all samples.

    Source: Clopper and Pearson 1934, Biometrika 26.
    """
    from scipy.special import betaincinv

    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, risk))


def binomial_high(successes: int, trials: int, risk: float) -> float:
    """Upper confidence limit of a probability: below it in at most `risk` of all samples."""
    return 1.0 - binomial_low(trials - successes, trials, risk)


def pairs_low(share: float, samples: int, risk: float) -> float:
    """Lower confidence limit of P(two independent draws relate) from all pairs of a sample.

    The share U of related pairs among S draws is an average of shares of floor(S/2) disjoint, hence
    independent, pairs (one per order of the sample), so E f(U) <= E f(B / k) for every convex f,
    where B is binomial(k, p) and k = floor(S/2). With f(x) = max(x - s, 0) and Markov's inequality,

        P(U >= u) <= min over s < u of E max(B/k - s, 0) / (u - s),

    and the limit is the smallest p for which this reaches `risk`. No choice of f in Hoeffding's
    exponential family gives less, so this is never wider than his bound.

    Args:
        share: U, in [0, 1].
        samples: S >= 2.
        risk: largest probability that the limit exceeds p.

    Source: Hoeffding 1963, J. Am. Stat. Assoc. 58, section 5b, for the average over orders.
    """
    from scipy.optimize import brentq

    pairs = samples // 2
    if share <= 0:
        return 0.0

    def excess(p: float) -> float:
        return _tail_bound(share * pairs, pairs, p) - risk

    return float(brentq(excess, 0.0, share, xtol=1e-12, rtol=1e-12))


def pairs_high(share: float, samples: int, risk: float) -> float:
    """Upper confidence limit of P(two independent draws relate), `pairs_low` of the opposite."""
    return 1.0 - pairs_low(1.0 - share, samples, risk)


def _tail_bound(at: float, trials: int, p: float) -> float:
    """Return the bound on P(U >= at / trials); whole s suffice: between them it is monotone."""
    from scipy.stats import binom

    s = np.arange(int(np.ceil(at)))
    tail = binom.sf(np.arange(trials), trials, p)  # P(B > j)
    excess = np.cumsum(tail[::-1])[::-1][: len(s)]  # E max(B - s, 0) = sum over j >= s of P(B > j)
    return float(min(1.0, (excess / (at - s)).min()))


# -- estimates -------------------------------------------------------------------------------------

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """With the estimate's confidence, at most `share_above` of all examples exceed `value`."""

    value: float
    share_above: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One quantity, estimated.

    Attributes:
        value: the point estimate.
        low: lower end of the interval.
        high: upper end; for a largest value over all examples it may be the trivial one.
        confidence: least probability that such an interval holds the true value; half of the risk
            goes to each end.
        kind: method of value and interval.
        quantile: for largest values, a limit for all but a few examples, with the same confidence
            of its own.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    kind: str
    quantile: Quantile | None = None


def estimate_omega(supports: Supports) -> Estimate:
    """Omega: the largest support in the sample, a lower bound, and the share that may be larger.

    If a share q of the examples had larger supports, S draws would all miss them with probability
    (1 - q)^S; this reaches 1 - confidence at q = 1 - (1 - confidence)^(1/S) <= ln(1/risk) / S.

    Raises:
        DataError: no samples.
    """
    risk = _risk(supports, 1)
    largest = float(supports.sizes().max())
    return Estimate(
        value=largest,
        low=largest,
        high=float(supports.n),
        kind="largest seen",
        quantile=Quantile(value=largest, share_above=1.0 - risk ** (1.0 / len(supports))),
    )


def estimate_delta(supports: Supports) -> Estimate:
    """Delta: share of the examples that touch the busiest coordinate.

    The coordinate is chosen on one half of the sample and its share measured on the other half, so
    that the choice does not inflate the value. Low is Clopper and Pearson's limit on that half.
    High is their limit for the largest count of the whole sample: the truly busiest coordinate
    need not be the chosen one, but its count is at most that, and the limit grows with the count.
    Half of the risk goes to each end.

    Raises:
        DataError: fewer than 2 samples.
    """
    risk = _risk(supports, 2) / 2
    first, second = _halves(supports)
    busiest = int(first.counts.argmax())
    touched = int(second.counts[busiest])
    most = int((first.counts + second.counts).max())
    return Estimate(
        value=touched / len(second),
        low=binomial_low(touched, len(second), risk),
        high=binomial_high(most, len(supports), risk),
        kind="busiest coordinate of one half, measured on the other",
    )


def estimate_p_conf(supports: Supports) -> Estimate:
    """Probability that the supports of two independent draws meet: the share of all pairs that do.

    The value is unbiased (a U-statistic); the interval is `pairs_low` and `pairs_high`,
    always inside Hoeffding's `sqrt(ln(2 / risk) / (2 floor(S / 2)))`.

    Raises:
        DataError: fewer than 2 samples.
    """
    risk = _risk(supports, 2) / 2
    samples = len(supports)
    nonempty = np.count_nonzero(supports.sizes())
    share = float(supports.meetings(supports).sum() - nonempty) / (samples * (samples - 1))
    return Estimate(
        value=share,
        low=pairs_low(share, samples, risk),
        high=pairs_high(share, samples, risk),
        kind="share of all pairs",
    )


def estimate_rho(supports: Supports, *, omega: int | None = None) -> Estimate:
    """Rho: the largest share of the examples that one example meets; a lower bound and a quantile.

    Low: the sample that meets most others in its own half is tested against the other half, whose
    meetings are independent trials (Clopper and Pearson). Value: its share there. Quantile: if more
    than a share q of the examples met more than its value, one of them would be in the first half
    but for a probability (1 - q)^(S/2), and the upper limit of its share on the second half would
    lie below the share itself only with half of the risk. High: omega * Delta, with Delta's upper
    limit.

    Args:
        supports: the sample, at least 4.
        omega: the largest possible support, if known (tokens per batch for the rows of an
            embedding); else n.

    Raises:
        DataError: fewer than 4 samples.
    """
    risk = _risk(supports, 4)
    first, second = _halves(supports)
    chosen = int(first.meetings(first).argmax())
    met = first.meetings(second)
    delta_high = estimate_delta(supports).high
    return Estimate(
        value=float(met[chosen]) / len(second),
        low=binomial_low(int(met[chosen]), len(second), risk / 2),
        high=min(1.0, (supports.n if omega is None else omega) * delta_high),
        kind="lower bound: the most meeting sample of one half, measured on the other",
        quantile=Quantile(
            value=binomial_high(int(met.max()), len(second), risk / 2),
            share_above=1.0 - (risk / 2) ** (1.0 / len(first)),
        ),
    )


def _risk(supports: Supports, fewest: int) -> float:
    if len(supports) < fewest:
        raise DataError(
            f"{len(supports)} sampled supports are too few for this estimate; draw {fewest} or more"
        )
    return 1.0 - CONFIDENCE


def _halves(supports: Supports) -> tuple[Supports, Supports]:
    order = np.random.default_rng(0).permutation(len(supports))
    half = len(supports) // 2
    return supports[order[:half]], supports[order[half:]]
