"""Rows of an embedding as a hypergraph: conflict under a token distribution, in closed form.

A batch of T tokens touches the row of every token in it. Tokens are taken as T independent draws
from the distribution p; real text repeats itself within a batch, so real supports are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Batches of tokens as supports over the rows of an embedding.

    Attributes:
        p: (V,) float64, probability of each token; sums to 1.
        tokens: tokens per batch, B * S.

    Raises:
        DataError: p is no distribution, or a batch has no tokens.
    """

    p: NDArray[np.float64]
    tokens: int

    def __post_init__(self) -> None:
        """Check the distribution."""
        if self.tokens < 1:
            raise DataError(f"batches of {self.tokens} tokens touch no row; wanted at least 1")
        if not len(self.p) or (self.p < 0).any() or not np.isclose(self.p.sum(), 1.0):
            raise DataError(
                f"token probabilities sum to {self.p.sum():.6g}, the smallest is "
                f"{self.p.min(initial=0.0):.3g}; wanted a distribution, see TokenRows.from_counts"
            )

    @classmethod
    def from_counts(cls, counts: NDArray[np.integer], tokens: int) -> TokenRows:
        """Use the relative frequencies of a corpus: counts (V,) of each token in it."""
        total = int(np.sum(counts))
        if total < 1:
            raise DataError("no token was counted; give the counts of a text")
        return cls(np.asarray(counts, np.float64) / total, tokens)

    @cached_property
    def q(self) -> NDArray[np.float64]:
        """P(row in batch) = 1 - (1 - p)^T, (V,)."""
        with np.errstate(divide="ignore"):  # a token that is all of the text is in every batch
            q: NDArray[np.float64] = -np.expm1(self.tokens * np.log1p(-self.p))
        return q

    @property
    def omega(self) -> int:
        """Largest support: a batch of distinct tokens, or the whole vocabulary in use."""
        return min(self.tokens, int(np.count_nonzero(self.p)))

    @property
    def mean_size(self) -> float:
        """Expected number of distinct rows in a batch, sum q."""
        return float(self.q.sum())

    @property
    def delta(self) -> float:
        """Delta, the share of the batches that hold the most frequent token."""
        return float(self.q.max())

    @property
    def mean_overlap(self) -> float:
        """Expected number of rows that two independent batches share, sum q^2: exact."""
        return float(np.square(self.q).sum())

    @property
    def p_conf(self) -> float:
        """P(two batches share a row), were rows in it independently of each other.

        Of batches of T tokens it is an estimate, as rows compete for the T places.
        """
        return p_conf_of_independent(self.q)

    @property
    def p_conf_upper_bound(self) -> float:
        """A bound on P(two batches share a row) that holds for any dependence: min(1, sum q^2)."""
        return min(1.0, self.mean_overlap)


def p_conf_of_independent(q: NDArray[np.float64]) -> float:
    """P(two supports meet) where each coordinate is in a support independently: 1 - prod(1 - q^2).

    Often given as 1 - exp(-sum q^2), which is a little less. Where supports differ in size it says
    too much: small ones meet less often than the average suggests.

    Args:
        q: (n,) probability of each coordinate.
    """
    with np.errstate(divide="ignore"):  # a coordinate of every support
        return float(-np.expm1(np.log1p(-np.square(q)).sum()))
