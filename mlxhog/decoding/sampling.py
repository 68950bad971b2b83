"""Choose the next token from logits.

One uniform number per row and step chooses it by the inverse of the cumulative distribution. So a
seed gives the same text every time on one backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.decoding.options import Sampling
from mlxhog.errors import Diverged

_BLOCK = 512
"""Number of weights in a block of the two-level search."""


class Sampler:
    """Draws tokens reproducibly.

    Args:
        sampling: the settings.
        row: number among several answers with the same settings; each has its own random numbers.

    Concurrency: one object is for one thread.
    """

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self._sampling = sampling
        temperature = sampling.temperature
        self.temperature = temperature if np.float32(temperature) else 0.0  # a divisor in float32
        sequence = np.random.SeedSequence(sampling.seed, spawn_key=(row,) if row else ())
        self._random = np.random.Generator(np.random.PCG64(sequence))

    def __call__(
        self, logits: NDArray[np.float32], occurred: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int32]:
        """Return one token per row, (B,) int32.

        Args:
            logits: (B, V).
            occurred: (B, V), whether a token occurs in prompt or answer, for the repetition
                penalty; None is no token.

        Raises:
            Diverged: a row has NaN, or only -inf.
        """
        if occurred is not None and self._sampling.repetition_penalty != 1:
            logits, penalty = logits.copy(), np.float32(self._sampling.repetition_penalty)
            for row, in_text in zip(logits, occurred, strict=True):
                where = np.flatnonzero(in_text)
                values = row[where]
                row[where] = np.where(values < 0, values * penalty, values / penalty)
        best = logits.max(axis=-1)
        check_finite(best)
        if self.temperature == 0:
            return np.asarray(np.argmax(logits, axis=-1), dtype=np.int32)
        tokens = [
            self._draw(row, float(top), self._random.random())
            for row, top in zip(logits, best, strict=True)
        ]
        return np.array(tokens, dtype=np.int32)

    def _draw(self, logits: NDArray[np.float32], best: float, uniform: float) -> int:
        """Return the token at `uniform` of the cumulative distribution, in the order of ids."""
        top_k, top_p, min_p = self._sampling.top_k, self._sampling.top_p, self._sampling.min_p
        filters = []  # indices that each of them keeps
        if 0 < top_k < len(logits):
            least = np.partition(logits, len(logits) - top_k)[len(logits) - top_k]
            filters.append(_largest(logits, top_k, least))
            logits = logits[filters[-1]]
        with np.errstate(over="ignore"):  # an overflow to -inf has weight 0
            weights: NDArray[np.float32] = np.exp((logits - best) / self.temperature)
            if top_p < 1:  # the fewest tokens with at least top_p, the one that crosses it included
                ranked = np.sort(logits)[::-1]
                cumulative = np.cumsum(np.exp((ranked - best) / self.temperature), dtype=np.float64)
                total = float(weights.sum(dtype=np.float64))
                n = min(int(np.searchsorted(cumulative, top_p * total)) + 1, len(ranked))
                filters.append(_largest(logits, n, ranked[n - 1]))
                weights = weights[filters[-1]]
        if min_p:
            filters.append(np.flatnonzero(weights >= min_p))
            weights = weights[filters[-1]]
        position = _at(weights, uniform)
        for indices in reversed(filters):
            position = int(indices[position])
        return position


def check_finite(best: NDArray[np.float32]) -> None:
    """Refuse rows of logits whose largest is not finite.

    Raises:
        Diverged: there is such a row.
    """
    if not np.isfinite(best).all():
        raise Diverged("the model's logits are not finite; generate from an earlier checkpoint")


def _largest(values: NDArray[np.float32], n: int, least: float) -> NDArray[np.intp]:
    """Return the indices of the n largest values, ascending; `least` is the smallest of them.

    Of the values equal to `least`, the first are taken.
    """
    positions = np.flatnonzero(values >= least)
    if len(positions) > n:
        equal = np.flatnonzero(values[positions] == least)
        positions = np.delete(positions, equal[len(equal) - (len(positions) - n) :])
    return positions


def _at(weights: NDArray[np.float32], uniform: float) -> int:
    """Return the index at which the cumulative sum passes a share of the total.

    Its weight is never 0. The search goes over blocks first, because a cumulative sum of 50,000
    weights costs more than a small model.
    """
    first, end = 0, len(weights)
    if end > _BLOCK:
        blocks = np.add.reduceat(weights, np.arange(0, end, _BLOCK))
        cumulative = np.cumsum(blocks, dtype=np.float64)
        point = uniform * cumulative[-1]
        block = _passes(cumulative, blocks, point)
        point -= cumulative[block - 1] if block else 0.0
        first = block * _BLOCK
        weights = weights[first : first + _BLOCK]
        cumulative = np.cumsum(weights, dtype=np.float64)
    else:
        cumulative = np.cumsum(weights, dtype=np.float64)
        point = uniform * cumulative[-1]
    return first + _passes(cumulative, weights, point)


def _passes(cumulative: NDArray[np.float64], weights: NDArray[np.float32], point: float) -> int:
    """Return the first index with a cumulative sum above `point`, or the last with a weight."""
    position = int(np.searchsorted(cumulative, point, side="right"))
    return position if position < len(weights) else int(np.flatnonzero(weights)[-1])
