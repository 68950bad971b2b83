"""Multi-query associative recall (MQAR): pairs of key and value, then every key once more.

    k1 v1 ... kP vP | (T - 2P) / 2 places of two tokens; P of them begin with a key

A key is answered at its own position, by its value, which is not in the row again. Keys are taken
in the order of the pairs, and each draws a free place g = 1, 2, ... with weight g^(a - 1): in text,
the gap before a repetition follows a power law. All other tokens are 0, as in the paper's runs, or
random ones of the whole vocabulary, which is harder: some repeat keys.

Source: Arora et al. 2023, Zoology, arXiv:2312.04927; HazyResearch/zoology, whose distributions are
the same. Differences: the default has 64 tokens instead of 8,192, so that small candidates solve it
in minutes; the vocabulary need not be larger than T; pairs are shown once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import IGNORED, Fixed, Ints, Rng, Rows, Task


@dataclass(frozen=True, kw_only=True)
class MultiQueryAssociativeRecall(Task):
    """The task; 0 is a filler, keys are 1 .. K, values K+1 .. V-1."""

    name: ClassVar[str] = "multi-query-associative-recall"
    short: ClassVar[str] = "MQAR"
    about: ClassVar[str] = "the values of several keys from the beginning of the sequence"
    sudden: ClassVar[bool] = True

    vocab: int = 64
    seq_len: int = 64
    n_pairs: int = option(
        4, "P, pairs of key and value, and queries", low=1, aliases=("num_kv_pairs", "pairs")
    )
    power_a: float = option(
        0.01, "a of the power law of gaps; 1 is uniform, less has more short gaps", above=0, high=1
    )
    random_fill: bool = option(
        False, "random tokens beside pairs and queries, not 0", aliases=("random_non_queries",)
    )

    @property
    def keys(self) -> int:
        """K."""
        return self.vocab // 2 - 1

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        P = self.n_pairs
        why = f"{P} keys in its first half, beside the filler 0, and {P} values in its second half"
        yield from self.at_least("vocab", 2 * P + 2, why)
        why = f"{P} pairs and as many queries have two tokens each"
        yield from self.at_least("seq_len", 4 * P, why, step=2)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; training and test rows are of one kind, with targets at the queries only."""
        P, shape = self.n_pairs, (n, self.seq_len)
        x = np.zeros(shape, np.int32)
        if self.random_fill:
            x = rng.integers(0, self.vocab, shape, np.int32)
        y = np.full(shape, IGNORED, np.int32)
        key = _different(rng, n, P, 1, self.keys + 1)
        value = _different(rng, n, P, self.keys + 1, self.vocab)
        x[:, 0 : 2 * P : 2], x[:, 1 : 2 * P : 2] = key, value
        weights = np.arange(1, (self.seq_len - 2 * P) // 2 + 1) ** (self.power_a - 1)
        row, at = np.arange(n)[:, None], 2 * P + 2 * _places(rng, n, P, weights / weights.sum())
        x[row, at], y[row, at] = key, value
        return x, y


def _different(rng: Rng, n: int, count: int, low: int, high: int) -> Ints:
    """Draw different numbers of low .. high - 1 (n, count), in any order alike.

    The choice is Floyd's, whose time does not depend on the range (Bentley and Floyd 1987).
    """
    chosen = np.empty((n, count), np.int32)
    for at, last in enumerate(range(high - count, high)):
        one = rng.integers(low, last + 1, n, np.int32)
        is_taken = (chosen[:, :at] == one[:, None]).any(1)
        chosen[:, at] = np.where(is_taken, last, one)
    return rng.permuted(chosen, axis=1)


def _places(rng: Rng, n: int, P: int, weights: NDArray[np.float64]) -> Ints:
    """Draw a place for each key (n, P), from 0, one after the other among the free ones.

    The first of exponential clocks with the weights as rates to ring is a draw by weight, and the
    next ones are draws among the others (Efraimidis and Spirakis 2006).
    """
    rings = rng.standard_exponential((n, len(weights)), np.float32) / weights.astype(np.float32)
    first = np.tile(np.arange(P), (n, 1))
    if P < len(weights):
        first = np.argpartition(rings, P - 1, axis=1)[:, :P]
    order = np.argsort(np.take_along_axis(rings, first, 1), axis=1)
    places: Ints = np.take_along_axis(first, order, 1)
    return places
