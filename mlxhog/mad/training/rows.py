"""The rows of a run: drawn once per process, and dealt out as batches by ticket."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import Batch
from mlxhog.data.batches import Order
from mlxhog.mad.tasks import Dataset, Settings, make_task

KEPT = 2
"""Data sets that a process keeps: candidates are mostly compared on the same one."""


@dataclass(frozen=True)
class TaskRows:
    """Which rows; hashable, and small enough to send to a worker.

    Attributes:
        settings: of the task; those of a user's task make another process load its file.
        seed: of the rows, and of their order.
        batch_size: rows of one batch.
        labels: of training rows, "dense" or "scored".
    """

    settings: Settings
    seed: int
    batch_size: int
    labels: str = "dense"

    def dataset(self) -> Dataset:
        """Return the rows; drawn again only where others were asked for since."""
        return _dataset(self.settings, self.seed, self.labels)

    def batches(self) -> RowBatches:
        """Return the training rows as batches."""
        data = self.dataset()
        return RowBatches(data.train_x, data.train_y, self)


@lru_cache(maxsize=KEPT)
def _dataset(settings: Settings, seed: int, labels: str) -> Dataset:
    return make_task(settings.task, seed=seed, labels=labels, **asdict(settings))


class RowBatches:
    """The training rows of every epoch, each exactly once, in an order of its own.

    The last batch of an epoch is smaller where the batch size does not divide their number.

    Args:
        x: inputs, (rows, length) int32.
        y: targets.
        task_rows: says batch size, and what the order depends on.

    Concurrency: any process that builds the same object gets the same batches. One object is not
    for several threads.
    """

    def __init__(self, x: NDArray[np.int32], y: NDArray[np.int32], task_rows: TaskRows) -> None:
        """Take the rows and their order."""
        self._x, self._y, self._size = x, y, task_rows.batch_size
        settings = tuple(sorted(asdict(task_rows.settings).items()))
        self._order = Order(len(x), f"{task_rows.settings.task}|{settings}", task_rows.seed)

    @property
    def n_tickets(self) -> int:
        """Batches per epoch."""
        return -(-self._order.n // self._size)

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket.

        Raises:
            ValueError: the ticket is not one of the epoch's.
        """
        if not 0 <= ticket < self.n_tickets:
            raise ValueError(f"ticket {ticket} is not one of the epoch's {self.n_tickets}")
        start = ticket * self._size
        chosen = self._order.at(epoch, start, min(self._size, self._order.n - start))
        return Batch(
            np.ascontiguousarray(self._x[chosen], np.int32),
            np.ascontiguousarray(self._y[chosen], np.int32),
            n_bytes=0,
        )
