"""Training batches by ticket: the order of an epoch, applied to a token file.

Ticket b covers positions [b B, (b + 1) B) of the order. The bijection from positions to sequences
depends on corpus, seed and epoch, never on the number of workers, so a resumed run needs one
integer, not a shuffled list. NumPy's `permutation` may change between versions.

All arithmetic is uint64 and wraps. `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood
2014, "Fast splittable pseudorandom number generators"); for n > 65,536 four Feistel rounds permute
[0, 4**half), and a value that falls outside [0, n) goes through them again ("cycle walking", Black
and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import Batch
from mlxhog.data.tokens import TokenFile

TABLE_LIMIT = 65_536  # up to this many sequences an epoch's order is one sorted table
_EPOCHS = 1 << 32


class Order:
    """The order of the sequences in an epoch.

    `corpus_sha` is a digest of the training text or the token file.

    Concurrency: every process that builds the same `Order` has the same permutation. One object is
    not for several threads.
    """

    def __init__(self, n: int, corpus_sha: str, seed: int) -> None:
        self.n, self.corpus_sha, self.seed = n, corpus_sha, seed
        self._table_epoch, self._table = -1, np.empty(0, np.int64)

    def at(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """Return the sequences at positions [start, start + count) of an epoch, (count,) int64."""
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
        high, low = result[outside] >> half, result[outside] & mask
        for key in keys:
            high, low = low, high ^ (_mix(low + key) & mask)
        result[outside] = (high << half) | low
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Growth:
    """A file when it grew: the epoch, its number of sequences, and its digest."""

    epoch: int
    rows: int
    digest: str


class Batches:
    """The training batches of every epoch, by ticket.

    An epoch's tickets hold every sequence exactly once; the last may be smaller. `frozen` stops
    gradients at the prompts of examples (`Batch`). `grown` lists when, in an epoch, the file has
    grown at its end: earlier sequences keep their order, and the new ones follow in that epoch.

    Concurrency: any process that builds the same object gets the same batches. One object is not
    for several threads.
    """

    def __init__(
        self, file: TokenFile, *, seq_len: int, batch_size: int, seed: int, frozen: bool = False,
        grown: tuple[Growth, ...] = (),
    ) -> None:  # fmt: skip
        self._file, self._frozen = file, frozen and file.prompts is not None
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        self._order = Order(file.n_sequences(seq_len), file.digest, seed)
        self._grown_epoch, bounds = grown[0].epoch if grown else -1, [0, *(g.rows for g in grown)]
        digests, ends = [*(g.digest for g in grown), file.digest], [*bounds[1:], self._order.n]
        self._blocks = [
            (first, Order(end - first, digest, seed))
            for first, end, digest in zip(bounds, ends, digests, strict=True)
        ]

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""
        return -(-self._order.n // self._batch_size)

    def example(self) -> Batch:
        """Return a batch of the usual shape, for a trial of the model."""
        return self.at(0, 0)

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket, from 0 to `n_tickets` - 1."""
        start = ticket * self._batch_size
        count = min(self._batch_size, self._order.n - start)
        batch = self._file.batch(self._sequences(epoch, start, count), self._seq_len)
        # A seed per sequence and epoch, so that micro-batches differ in their seeds, too.
        seed = (self._seed * _EPOCHS + epoch) * self._order.n + start
        return replace(batch, seed=seed, frozen=self._frozen)

    def _sequences(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        if epoch != self._grown_epoch:
            return self._order.at(epoch, start, count)
        own = [
            first + order.at(epoch, a, b - a)
            for first, order in self._blocks
            if (a := max(start - first, 0)) < (b := min(start + count - first, order.n))
        ]
        return np.concatenate(own)
