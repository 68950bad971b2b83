"""Sample the next token from logits.

One uniform number per step selects it by inverse transform sampling, so a seed gives the same text
every time on one backend.
"""

import numpy as np
from numpy.typing import NDArray

from mlxhog.decoding.options import Sampling
from mlxhog.errors import Diverged


class TokenSampler:
    """Draws the tokens of one answer reproducibly; each `row` has its own random numbers.

    Concurrency: one object is for one thread.
    """

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self._sampling = sampling
        temperature = sampling.temperature
        self.temperature = temperature if np.float32(temperature) else 0.0  # a divisor in float32
        sequence = np.random.SeedSequence(sampling.seed, spawn_key=(row,) if row else ())
        self._random = np.random.Generator(np.random.PCG64(sequence))

    def __call__(
        self, logits: NDArray[np.float32], seen_tokens: NDArray[np.bool_] | None = None
    ) -> int:
        """Sample a token from logits (V,).

        `seen_tokens` (V,) is true for tokens of prompt or answer; None is no token.

        Raises:
            Diverged: there is NaN, or only -inf.
        """
        how, penalty = self._sampling, np.float32(self._sampling.repetition_penalty)
        if seen_tokens is not None and penalty != 1:
            penalized = np.where(logits < 0, logits * penalty, logits / penalty)
            logits = np.where(seen_tokens, penalized, logits)
        best = logits.max()
        check_finite(best)
        if self.temperature == 0:
            return int(logits.argmax())
        uniform, V = self._random.random(), len(logits)
        with np.errstate(over="ignore"):  # an overflow to -inf has weight 0
            weights: NDArray[np.float32] = np.exp((logits - float(best)) / self.temperature)
        if 0 < how.top_k < V or how.top_p < 1:
            order = np.argsort(-logits, kind="stable")  # of equal tokens the first comes first
            if 0 < how.top_k < V:
                weights[order[how.top_k :]] = 0.0
            if how.top_p < 1:  # the fewest tokens with at least top_p, the one that crosses it too
                cumulative = np.cumsum(weights[order], dtype=np.float64)
                n = int(np.searchsorted(cumulative, how.top_p * cumulative[-1])) + 1
                weights[order[n:]] = 0.0
        weights[weights < how.min_p] = 0.0
        cumulative = np.cumsum(weights, dtype=np.float64)
        position = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return position if position < V else int(np.flatnonzero(weights)[-1])


def check_finite(best: NDArray[np.float32] | np.float32) -> None:
    """Raise `Diverged` for logits whose largest is not finite."""
    if not np.isfinite(best).all():
        raise Diverged("the model's logits are not finite; generate from an earlier checkpoint")
