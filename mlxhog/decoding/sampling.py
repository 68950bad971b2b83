"""Choose the next token from logits.

One uniform number per row and step chooses it by the inverse of the cumulative distribution. So a
seed gives the same text every time on one backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.decoding.options import Sampling
from mlxhog.errors import Diverged


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
        with np.errstate(over="ignore"):  # an overflow to -inf has weight 0
            weights: NDArray[np.float32] = np.exp((logits - best) / self.temperature)
        if 0 < top_k < len(logits) or top_p < 1:
            order = np.argsort(-logits, kind="stable")  # of equal tokens the first comes first
            if 0 < top_k < len(logits):
                weights[order[top_k:]] = 0.0
            if top_p < 1:  # the fewest tokens with at least top_p, the one that crosses it included
                cumulative = np.cumsum(weights[order], dtype=np.float64)
                n = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
                weights[order[n:]] = 0.0
        weights[weights < min_p] = 0.0
        cumulative = np.cumsum(weights, dtype=np.float64)
        position = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return position if position < len(weights) else int(np.flatnonzero(weights)[-1])


def check_finite(best: NDArray[np.float32]) -> None:
    """Refuse rows of logits whose largest is not finite.

    Raises:
        Diverged: there is such a row.
    """
    if not np.isfinite(best).all():
        raise Diverged("the model's logits are not finite; generate from an earlier checkpoint")
