"""Tickets to training batches: the order of an epoch applied to a token file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import Batch
from mlxhog.data.order import TABLE_LIMIT, Order
from mlxhog.data.tokens import TokenFile

_AHEAD = 4096
_EPOCHS = 1 << 32


class Batches:
    """The training batches of every epoch, by ticket.

    Ticket b covers positions [b B, (b + 1) B) of the epoch's order, so an epoch's tickets hold
    every sequence exactly once; the last is shorter where B does not divide their number.

    Args:
        file: the training token file.
        seq_len: length of a sequence.
        batch_size: sequences per ticket, B.
        seed: the run's seed.

    Concurrency: any process that builds the same object gets the same batches. One object is not
    for several threads.
    """

    def __init__(self, file: TokenFile, *, seq_len: int, batch_size: int, seed: int) -> None:
        """See the class."""
        self._file = file
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._seed = seed
        self._order = Order(file.n_sequences(seq_len), file.digest, seed)
        self._ahead: NDArray[np.int64] = np.empty(0, np.int64)
        self._ahead_at = (-1, 0)

    @classmethod
    def open(cls, path: Path, *, seq_len: int, batch_size: int, seed: int) -> Batches:
        """Return the batches of the token file at a path."""
        return cls(TokenFile.open(path), seq_len=seq_len, batch_size=batch_size, seed=seed)

    @property
    def n_tickets(self) -> int:
        """Tickets per epoch."""
        return -(-self._order.n // self._batch_size)

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket.

        Raises:
            ValueError: the ticket is not one of the epoch's.
        """
        if not 0 <= ticket < self.n_tickets:
            raise ValueError(f"ticket {ticket} is not one of the epoch's {self.n_tickets}")
        start = ticket * self._batch_size
        count = min(self._batch_size, self._order.n - start)
        batch = self._file.batch(self._positions(epoch, start, count), self._seq_len)
        # Distinct for every sequence of every epoch, so that parts of a batch differ, too.
        return replace(batch, seed=(self._seed * _EPOCHS + epoch) * self._order.n + start)

    def _positions(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """Return the order at a few positions; in long epochs it is computed a block at a time."""
        if self._order.n <= TABLE_LIMIT:
            return self._order.at(epoch, start, count)
        ahead_epoch, first = self._ahead_at
        if epoch != ahead_epoch or not first <= start <= start + count <= first + len(self._ahead):
            block = min(max(_AHEAD, count), self._order.n - start)
            self._ahead, self._ahead_at = self._order.at(epoch, start, block), (epoch, start)
            first = start
        return self._ahead[start - first : start - first + count]
