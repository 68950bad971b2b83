"""The rows of a run: batches to train on, and scores of those that are held out.

A process draws the rows once. They are scored in any process that trains, or as a side job of a
worker. Each worker of a candidate with several leaves its newest score in the arena, where it stays
until it is read:

    segment  byte        type    meaning
    scores   256 k       u64     scores that the worker of slot k + 1 has left, n
             256 k + 8   RECORD  the newest, where n is even, and at 256 k + 128 where it is odd

When it scores again, it writes beside the newest one; the supervisor asks again once it has read
that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import records
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Order
from mlxhog.mad.tasks import Dataset, Settings, make_task
from mlxhog.mad.tasks.dataset import acc_macro, acc_token
from mlxhog.models.mad.config import MADConfig
from mlxhog.strategies import Context
from mlxhog.training.job import Job
from mlxhog.training.side_jobs import takes_on

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


MOST_NUMBERS = 1 << 22
"""Of the widest array of one piece: large enough for speed, small beside a gradient's."""

WIDEST_LAYER = 8
"""Times the model's width: about what the inside of a layer keeps of a position."""


@dataclass(frozen=True)
class Scores:
    """Accuracies over the scored positions, in [0, 1]; see `mad/scores/accuracy.py`.

    Those of the validation rows are None where none were drawn.
    """

    acc_token: float
    acc_macro: float
    val_token: float | None = None
    val_macro: float | None = None

    def deciding(self, select: str) -> tuple[float, float]:
        """Return both accuracies of the rows that decide, "test" or "val"."""
        if select == "test":
            return self.acc_token, self.acc_macro
        assert self.val_token is not None
        assert self.val_macro is not None
        return self.val_token, self.val_macro


def score(backend: Backend, rows: Dataset, model: MADConfig, *, beat: Callable[[], None]) -> Scores:
    """Score test and validation rows at the parameters in the backend's inbox.

    Args:
        backend: bound to the model.
        rows: of the task.
        model: whose sizes say how many rows are predicted at a time.
        beat: called after each piece.
    """
    predictions = {
        split: predict(backend, x, model, beat=beat)
        for split, (x, _) in rows.splits().items()
        if split != "train"
    }
    test = {"acc_token": acc_token(rows.test_y, predictions["test"])}
    test["acc_macro"] = acc_macro(rows.test_y, predictions["test"])
    if rows.val_y is None:
        return Scores(**test)
    return Scores(
        **test,
        val_token=acc_token(rows.val_y, predictions["val"]),
        val_macro=acc_macro(rows.val_y, predictions["val"]),
    )


def predict(
    backend: Backend, x: NDArray[np.int32], model: MADConfig, *, beat: Callable[[], None]
) -> NDArray[np.int32]:
    """Return the most likely token at every position of (rows, length), a piece at a time."""
    widest = max(model.vocab_size, WIDEST_LAYER * model.hidden_size)
    rows = max(1, MOST_NUMBERS // (widest * x.shape[1]))
    tokens = np.empty(x.shape, np.int32)
    for begin in range(0, len(x), rows):
        piece = np.ascontiguousarray(x[begin : begin + rows], np.int32)
        tokens[begin : begin + rows] = backend.predictions(piece)
        beat()
    return tokens


SCORES_SEGMENT = "scores"
SLOT_BYTES = 256
RECORD = np.dtype(
    [
        ("steps", "<u8"),  # of the run before it
        ("t_ns", "<u8"),  # when the parameters were read
        ("acc_token", "<f8"),  # of the test rows
        ("acc_macro", "<f8"),
        ("val_token", "<f8"),  # of the validation rows, where there are some
        ("val_macro", "<f8"),
    ]
)


def scores_segment(workers: int) -> tuple[str, int]:
    """Type and length of the arena's segment; see `arena.plan`."""
    return "uint8", workers * SLOT_BYTES


class ScoreSlot:
    """One worker's scores, over its part of the arena's segment.

    Concurrency: one process leaves, one takes.
    """

    def __init__(self, data: NDArray[np.uint8], slot: int) -> None:
        """Wrap the part of slot `slot`; scores that were left before are not taken."""
        self._line = data[(slot - 1) * SLOT_BYTES : slot * SLOT_BYTES]
        self._taken = self._count()

    def _count(self) -> int:
        return _native.load_u64(self._line, 0)

    def _place(self, count: int) -> NDArray[np.void]:
        begin = 128 if count % 2 else 8
        return self._line[begin : begin + RECORD.itemsize].view(RECORD)

    def leave(self, **fields: float) -> None:
        """Write a score, then publish it."""
        count = self._count() + 1
        record = self._place(count)[0]
        for name in RECORD.names or ():
            record[name] = fields[name]
        _native.store_u64(self._line, 0, count)

    def take(self) -> np.void | None:
        """Return the newest score if it has not been taken."""
        count = self._count()
        if count == self._taken:
            return None
        self._taken = count
        record: np.void = self._place(count).copy()[0]
        return record


@dataclass(frozen=True)
class HeldOut:
    """What scoring needs beside the worker; picklable.

    Attributes:
        task_rows: the rows.
        model: the architecture.
    """

    task_rows: TaskRows
    model: MADConfig

    def open(self, job: Job, context: Context, ring: records.Ring) -> ScoreJobs:
        """Draw the rows in a worker."""
        return ScoreJobs(self, job, context, ring)


class ScoreJobs:
    """Evaluations; each that is asked for is taken on by one worker."""

    def __init__(self, held_out: HeldOut, job: Job, context: Context, ring: records.Ring) -> None:
        """Draw the rows."""
        self.held_out, self.job, self.context = held_out, job, context
        self._scores = ScoreSlot(context.arena.segment(SCORES_SEGMENT), job.slot)
        held_out.task_rows.dataset()

    def serve(self) -> None:
        """Score the rows if that is asked for, and no other worker does."""
        if takes_on(self.context, "eval_asked", "eval_taken"):
            self._score()

    def evaluate_rest(self) -> None:
        """Score all rows: they are too few to share out."""
        self.serve()

    def _score(self) -> None:
        context, held_out = self.context, self.held_out
        steps, read_ns = context.arena.counters.load("steps"), monotonic_ns()
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)
        scores = score(
            context.backend, held_out.task_rows.dataset(), held_out.model, beat=context.entry.beat
        )
        self._scores.leave(
            steps=steps,
            t_ns=read_ns,
            acc_token=scores.acc_token,
            acc_macro=scores.acc_macro,
            val_token=scores.val_token or 0.0,
            val_macro=scores.val_macro or 0.0,
        )
