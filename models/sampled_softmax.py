"""Sampled softmax: a training loss over the targets of the batch and random negatives.

The softmax of a position needs Z, the sum of exp(logit) over the vocabulary. All targets of the
batch, T, are used. Of the other tokens, N negatives are sampled without replacement, token c with a
known probability pi(c) and the weight 1 / pi(c):

    Z ~ sum over c in T of exp(s_c) + sum over negatives c of exp(s_c - log pi(c))

This estimate of Z is unbiased for every pi, and exact if N is the number of all other tokens
(pi = 1). So the loss is an ordinary cross entropy over |T| + N logits, minus log pi. Only the
head's rows of these tokens are read, and get a gradient. The gradient is biased, since log Z is not
linear in Z; the bias decreases with N. pi is proportional to the token's count in the training text
to the power 3/4.

Source: Bengio and Senecal 2008, doi:10.1109/TNN.2007.912312; Jean et al. 2015, arXiv:1412.2007;
the estimate of a sum: Horvitz and Thompson 1952; the power: Mikolov et al. 2013, arXiv:1310.4546.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.spec import generator

POWER = 0.75
IMPOSSIBLE = 1e9
"""log pi of padding: its exp(logit - log pi) is 0, and so is its gradient."""

STREAM = "sampled_head".replace("_", " ")
"""Key of the random stream; it keeps its first name, so that a seed gives the same negatives."""

Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The tokens of one loss: targets and negatives."""

    ids: Int32  # (C,) int32; ascending, each once, in front of any padding
    log_inclusion: NDArray[np.float32]  # (C,) float32, log pi; 0 for targets
    labels: Int32  # (B, S) int32, indices into `ids`; negative labels are unchanged
    count: int  # number of tokens without padding

    def padded(self, length: int) -> "Candidates":
        """Return the candidates padded to `length` ids, so that batches have equal shapes."""
        more = (0, length - len(self.ids))
        log_inclusion = np.pad(self.log_inclusion, more, constant_values=np.float32(IMPOSSIBLE))
        return replace(self, ids=np.pad(self.ids, more), log_inclusion=log_inclusion)


@dataclass(frozen=True)
class SampledSoftmax:
    """The distribution of the negatives."""

    negatives: int  # N, tokens drawn for each loss
    weights: Float64  # (V,) float64 > 0, to which pi is proportional

    @classmethod
    def of_counts(cls, negatives: int, counts: NDArray[np.int64]) -> "SampledSoftmax":
        """Make it from the counts (V,) of tokens in the training text; a count of 0 is 1."""
        return cls(negatives, np.maximum(counts, 1).astype(np.float64) ** POWER)

    def draw(self, labels: Int32, seed: int) -> Candidates:
        """Sample the candidates of a loss of labels (B, S); negative labels are ignored."""
        targets = np.unique(labels[labels >= 0])
        others = np.delete(np.arange(len(self.weights), dtype=np.int32), targets)
        random = generator(f"{seed}:{STREAM}")
        others = random.permutation(others)
        share = inclusion(self.weights[others], self.negatives)
        sample = systematic(share, random.random())
        ids = np.concatenate([targets, others[sample]]).astype(np.int32)
        log_inclusion = np.concatenate([np.zeros(len(targets)), np.log(share[sample])])
        order = np.argsort(ids)
        ids = ids[order]
        labels = np.where(labels >= 0, np.searchsorted(ids, labels), labels).astype(np.int32)
        return Candidates(ids, log_inclusion[order].astype(np.float32), labels, len(ids))


def inclusion(weights: Float64, n: int) -> Float64:
    """Return probabilities with sum n, proportional to the weights and at most 1."""
    share = np.ones(len(weights))
    if n >= len(weights):
        return share
    below = np.ones(len(weights), bool)
    while True:
        remaining = n - np.count_nonzero(~below)
        share[below] = remaining * weights[below] / weights[below].sum()
        if not (share > 1).any():
            return share
        below &= share < 1
        share[~below] = 1.0


def systematic(share: Float64, start: float) -> NDArray[np.intp]:
    """Sample `sum(share)` items systematically: item k with probability share[k].

    The shares are consecutive intervals; the items at start, start + 1, start + 2 ... are chosen.
    The items should be in random order.
    Source: Madow 1949, doi:10.1214/aoms/1177729988.
    """
    n = round(float(share.sum()))
    ends = np.cumsum(share)
    ends *= n / ends[-1] if n else 1.0
    order = np.arange(n)
    items = np.searchsorted(ends, start + order, side="right")
    # Rounding may choose an item of share 1 twice, or one after the last.
    items = np.maximum.accumulate(items - order) + order
    return np.minimum(items, len(share) - n + order)
