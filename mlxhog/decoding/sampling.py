"""Choosing the next token from logits.

Filters apply in transformers' order: temperature, top-k, top-p, min-p. One uniform number per row
and step decides, through the inverse of the cumulative distribution, so a seed gives the same text
twice on one backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, Diverged


class Sampler:
    """Draws tokens, reproducibly.

    Args:
        temperature: 0 takes the most likely token; 1 is the model's own distribution.
        top_k: only the k most likely tokens; 0 is all.
        top_p: only the most likely tokens that together reach this probability; 1 is all
            (Holtzman et al. 2020, "The curious case of neural text degeneration").
        min_p: only tokens at least this likely relative to the most likely one; 0 is all
            (Nguyen et al. 2024, "Turning up the heat", arXiv:2407.01082).
        seed: the same seed and logits give the same tokens.

    Raises:
        ConfigError: a number is out of its range.

    Concurrency: one object is not for several threads.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        """See the class."""
        for name, value, good, wanted in (
            ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
            ("top_k", top_k, top_k >= 0, "0 or more"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("min_p", min_p, 0 <= min_p <= 1, "between 0 and 1"),
            ("seed", seed, seed >= 0, "0 or more"),
        ):
            if not good:
                raise ConfigError(f"{name} is {value}, expected {wanted}")
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p
        self._min_p = min_p
        self._random = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return one token per row, (B,) int32, for logits (B, V).

        Raises:
            Diverged: a row holds NaN, or nothing but -inf.
        """
        best = logits.max(axis=-1)
        if not np.isfinite(best).all():
            raise Diverged("the model's logits are not finite; generate from an earlier checkpoint")
        if self._temperature == 0:
            return np.asarray(np.argmax(logits, axis=-1), dtype=np.int32)
        scaled = (logits.astype(np.float64) - best[:, None]) / self._temperature
        weights = np.exp(scaled)
        tokens = [self._draw(row, self._random.random()) for row in weights]
        return np.array(tokens, dtype=np.int32)

    def _draw(self, weights: NDArray[np.float64], uniform: float) -> int:
        """Return the token at a point of the cumulative distribution, most likely first."""
        order = np.argsort(-weights, kind="stable")
        sorted_weights = weights[order]
        if self._top_k:
            sorted_weights = sorted_weights[: self._top_k]
        cumulative = np.cumsum(sorted_weights)
        # The token that crosses top_p is kept, so at least one always is.
        kept = int(np.searchsorted(cumulative, self._top_p * cumulative[-1])) + 1
        kept = min(kept, int((sorted_weights >= self._min_p * sorted_weights[0]).sum()))
        possible = int((sorted_weights[:kept] > 0).sum())
        point = uniform * cumulative[possible - 1]
        chosen = min(int(np.searchsorted(cumulative, point, side="right")), possible - 1)
        return int(order[chosen])
