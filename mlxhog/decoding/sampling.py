"""Choosing the next token from logits.

In transformers' order: repetition penalty, temperature, top-k, top-p, min-p. One uniform number per
row and step decides, through the inverse of the cumulative distribution, so a seed gives the same
text twice on one backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, Diverged

_BLOCK = 512
"""Weights that are added up at once to find one among many."""

LEAST_PENALTY, MOST_PENALTY = 0.01, 1000
"""For repetitions; beyond these, float32 may not hold the logits that they change."""

MOST_TEMPERATURE = 100

Occurred = NDArray[np.bool_] | None


class Sampler:
    """Draws tokens, reproducibly.

    Args:
        temperature: 0 takes the most likely token, and so does a number that float32 rounds to 0;
            1 is the model's own distribution.
        top_k: only the k most likely tokens; 0 is all.
        top_p: only the most likely tokens that together reach this probability; 1 is all
            (Holtzman et al. 2020, "The curious case of neural text degeneration").
        min_p: only tokens at least this likely relative to the most likely one; 0 is all
            (Nguyen et al. 2024, "Turning up the heat", arXiv:2407.01082).
        repetition_penalty: logits of tokens that occurred are divided by this where positive, and
            multiplied where negative; 1 changes nothing (Keskar et al. 2019, "CTRL",
            arXiv:1909.05858).
        seed: the same seed and logits give the same tokens.
        row: which of several answers with the same settings; each has random numbers of its own.

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
        repetition_penalty: float = 1.0,
        seed: int = 0,
        row: int = 0,
    ) -> None:
        for name, value, valid, expected in (
            (
                "temperature",
                temperature,
                0 <= temperature <= MOST_TEMPERATURE,
                f"between 0 and {MOST_TEMPERATURE}",
            ),
            ("top_k", top_k, top_k >= 0, "0 or more"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("min_p", min_p, 0 <= min_p <= 1, "between 0 and 1"),
            (
                "repetition_penalty",
                repetition_penalty,
                LEAST_PENALTY <= repetition_penalty <= MOST_PENALTY,
                f"between {LEAST_PENALTY} and {MOST_PENALTY}",
            ),
            ("seed", seed, seed >= 0, "0 or more"),
        ):
            if not valid:
                raise ConfigError(f"{name} is {value}, expected {expected}")
        self.repetition_penalty = repetition_penalty
        self.temperature = temperature if np.float32(temperature) else 0.0  # by which is divided
        self._top_k = top_k
        self._top_p = top_p
        self._min_p = min_p
        self._seed = seed
        sequence = np.random.SeedSequence(seed, spawn_key=(row,) if row else ())
        self._random = np.random.Generator(np.random.PCG64(sequence))

    @property
    def takes_all(self) -> bool:
        """Whether every token may be drawn, with the model's own logits."""
        return (
            not self._top_k
            and self._top_p == 1
            and not self._min_p
            and (self.repetition_penalty == 1)
        )

    def of_row(self, row: int) -> Sampler:
        """Return a sampler with the same settings for answer `row`; row 0 draws as a new one."""
        return Sampler(
            temperature=self.temperature,
            top_k=self._top_k,
            top_p=self._top_p,
            min_p=self._min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self._seed,
            row=row,
        )

    def uniform(self) -> float:
        """Return the next random number, in [0, 1)."""
        return self._random.random()

    def __call__(
        self, logits: NDArray[np.float32], occurred: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int32]:
        """Return one token per row, (B,) int32.

        Args:
            logits: (B, V).
            occurred: (B, V), the tokens of prompt and answer, for the repetition penalty; None is
                no token.

        Raises:
            Diverged: a row holds NaN, or nothing but -inf.
        """
        if occurred is not None and self.repetition_penalty != 1:
            logits, penalty = logits.copy(), np.float32(self.repetition_penalty)
            for row, in_text in zip(logits, occurred, strict=True):
                where = np.flatnonzero(in_text)
                values = row[where]
                row[where] = np.where(values < 0, values * penalty, values / penalty)
        best = logits.max(axis=-1)
        _check_finite(best)
        if self.temperature == 0:
            return np.asarray(np.argmax(logits, axis=-1), dtype=np.int32)
        tokens = [
            self._draw(row, float(top), self.uniform())
            for row, top in zip(logits, best, strict=True)
        ]
        return np.array(tokens, dtype=np.int32)

    def _draw(self, logits: NDArray[np.float32], best: float, uniform: float) -> int:
        """Return the token at a point of the cumulative distribution, in the order of ids."""
        tokens = None  # all of them
        if 0 < self._top_k < len(logits):
            least = np.partition(logits, len(logits) - self._top_k)[len(logits) - self._top_k]
            tokens = _largest(logits, self._top_k, least)
        elif self._min_p and self._top_p == 1:
            # Before the exponentials, which are most of the work.
            tokens = np.flatnonzero(logits >= self._least_logit(best))
        if tokens is not None:
            logits = logits[tokens]
        weights = self._weights(logits, best)
        if self._top_p < 1:
            nucleus = self._nucleus(logits, weights, best)
            tokens, weights = nucleus if tokens is None else tokens[nucleus], weights[nucleus]
        if self._min_p:
            weights = np.where(weights >= self._min_p, weights, 0)
        position = _at(weights, uniform)
        return position if tokens is None else int(tokens[position])

    def _weights(self, logits: NDArray[np.float32], best: float) -> NDArray[np.float32]:
        """Return probabilities relative to the most likely token."""
        with np.errstate(over="ignore"):  # to -inf, whose weight is 0
            weights: NDArray[np.float32] = np.exp((logits - best) / self.temperature)
        return weights

    def _nucleus(
        self, logits: NDArray[np.float32], weights: NDArray[np.float32], best: float
    ) -> NDArray[np.intp]:
        """Return the most likely tokens that together reach top_p of all, at least one."""
        total = float(weights.sum(dtype=np.float64))
        # All tokens lighter than this weigh less than what may be left out, so they are not sorted;
        # half of it, for rounding.
        light = 0.5 * (1 - self._top_p) * total / len(weights)
        ranked = np.sort(logits[weights >= light])[::-1]
        cumulative = np.cumsum(self._weights(ranked, best), dtype=np.float64)
        # The token that crosses top_p is kept.
        n = min(int(np.searchsorted(cumulative, self._top_p * total)) + 1, len(ranked))
        return _largest(logits, n, ranked[n - 1])

    def _least_logit(self, best: float) -> float:
        """Return a logit below which min-p leaves nothing, a little lower for rounding."""
        return best + 1.001 * self.temperature * math.log(self._min_p) - 1e-3


def draw_each(
    samplers: Sequence[Sampler], logits: NDArray[np.float32], occurred: Sequence[Occurred]
) -> NDArray[np.int32]:
    """Return one token per row, (B,) int32: what the row's own sampler draws alone.

    With small vocabularies the plain samplers among them draw together, which takes a fraction of
    the time.

    Args:
        samplers: one for each row.
        logits: (B, V).
        occurred: (1, V) of each row, or None; see `Sampler`.

    Raises:
        Diverged: a row holds NaN, or nothing but -inf.
    """
    plain = np.array([sampler.takes_all for sampler in samplers])
    if logits.shape[1] > _BLOCK or len(samplers) == 1:
        plain[:] = False
    tokens = np.empty(len(samplers), np.int32)
    for j in np.flatnonzero(~plain).tolist():
        tokens[j] = samplers[j](logits[j : j + 1], occurred[j])[0]
    if plain.any():
        rows = np.flatnonzero(plain).tolist()
        tokens[rows] = _draw_plain([samplers[j] for j in rows], logits[rows])
    return tokens


def _draw_plain(samplers: Sequence[Sampler], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    best = logits.max(axis=1, keepdims=True)
    _check_finite(best)
    temperatures = np.array([[sampler.temperature] for sampler in samplers], np.float32)
    uniforms = np.array([[s.uniform() if s.temperature else 0.0] for s in samplers])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # at temperature 0
        weights = np.exp((logits - best) / temperatures)
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    tokens = np.count_nonzero(cumulative <= uniforms * cumulative[:, -1:], axis=1)
    for j in np.flatnonzero(tokens == logits.shape[1]):  # at the very end
        tokens[j] = np.flatnonzero(weights[j])[-1]
    greedy = temperatures[:, 0] == 0
    drawn: NDArray[np.intp] = np.where(greedy, logits.argmax(axis=1), tokens)
    return drawn


def _check_finite(best: NDArray[np.float32]) -> None:
    if not np.isfinite(best).all():
        raise Diverged("the model's logits are not finite; generate from an earlier checkpoint")


def _largest(values: NDArray[np.float32], n: int, least: float) -> NDArray[np.intp]:
    """Return where the n largest values are, ascending; `least` is the least of them.

    Of those that equal the least, the first.
    """
    positions = np.flatnonzero(values >= least)
    if len(positions) > n:
        equal = np.flatnonzero(values[positions] == least)
        positions = np.delete(positions, equal[len(equal) - (len(positions) - n) :])
    return positions


def _at(weights: NDArray[np.float32], uniform: float) -> int:
    """Return where the running sum of weights passes a share of the whole, never at a weight of 0.

    Whole blocks are added up first: a running sum of 50,000 costs more than a small model.
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
    """Return the first place whose running sum is above a point; at the very end, the last one."""
    position = int(np.searchsorted(cumulative, point, side="right"))
    return position if position < len(weights) else int(np.flatnonzero(weights)[-1])
