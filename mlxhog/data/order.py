"""The order of an epoch: a keyed permutation that any process computes for itself.

A batch ticket b covers positions [b B, (b + 1) B) of the order. Position to sequence is a bijection
that depends on the corpus, the seed and the epoch, never on the number of workers, so a resumed run
needs one integer and not a shuffled list. NumPy's own `permutation` is not used because its stream
may change between versions.

All arithmetic is uint64 and wraps. `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood
2014, "Fast splittable pseudorandom number generators"); for n > 65,536 four Feistel rounds permute
[0, 4**half), and a value that falls outside [0, n) goes through them again ("cycle walking", Black
and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

TABLE_LIMIT = 65_536
"""Up to this many sequences an epoch's order is one sorted table."""


class Order:
    """Which sequence stands at which position of an epoch.

    Args:
        n: number of sequences, > 0.
        corpus_sha: hexadecimal digest of the training text or token file.
        seed: the run's seed.

    Concurrency: plain functions of the arguments; every process that builds the same `Order`
    sees the same permutation. One object is not for several threads.
    """

    def __init__(self, n: int, corpus_sha: str, seed: int) -> None:
        """See the class."""
        if n <= 0:
            raise ValueError(f"an order needs at least one sequence, got n={n}")
        self.n = n
        self.corpus_sha = corpus_sha
        self.seed = seed
        self._table_epoch = -1
        self._table: NDArray[np.int64] = np.empty(0, np.int64)

    def at(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """Return the sequences at positions [start, start + count) of an epoch, (count,) int64.

        Raises:
            ValueError: the range leaves [0, n).
        """
        if not 0 <= start <= start + count <= self.n:
            raise ValueError(f"positions {start}..{start + count} leave the epoch of {self.n}")
        if self.n > TABLE_LIMIT:
            positions = np.arange(start, start + count, dtype=np.uint64)
            return _feistel(positions, self.n, self._keys(epoch))
        if epoch != self._table_epoch:
            self._table = _table(self.n, self._keys(epoch))
            self._table_epoch = epoch
        return self._table[start : start + count].copy()

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        text = f"mlxhog-order-1|{self.corpus_sha}|{self.seed}|{epoch}"
        digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
        return np.frombuffer(digest, "<u8").astype(np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _table(n: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    values = _mix(_mix(np.arange(n, dtype=np.uint64) + keys[0]) + keys[1])
    return np.argsort(values, kind="stable").astype(np.int64)


def _feistel(x: NDArray[np.uint64], n: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    result = x.copy()
    outside = np.arange(x.size)
    while outside.size:
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = (left << half) | right
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)
