"""Communication of supervisor and workers without a queue: counters, commands, rings of records.

Each worker has a ring, which only the supervisor reads. The head is a seqlock counter: the worker
makes it odd, writes a record, and makes it even, which publishes the record. The reader copies the
records between its own position and the head, reads the head again, and drops those that were
overwritten meanwhile: it reads no torn record, and knows how many it lost. The worker never waits.

    ring bytes   0  u64 head, twice the number of records ever written; odd while one is written
               128  CAPACITY records of RECORD
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.words import LINE, Table

NAMES = (
    "command",  # the current command to the workers (`ControlCommand`); the supervisor writes it
    "start_ns",  # start of training, monotonic; the supervisor writes it when all are ready
    "end_ns",  # end of training, monotonic, or 0; the supervisor writes it
    "pause",  # 1 while a checkpoint is taken: no worker may change the arena
    # Steps of this call, including dropped ones, as workers report them; the step of a worker that
    # died before its report is missing until `Strategy.settle`.
    "steps",
    "version",  # updates applied to the parameters, since the model was initialized
    "moments_since",  # the version at which the optimizer's shared moments began
    "tokens",  # tokens computed by this call
    # By the sidecar: tokens that other machines of the cluster computed, from its beginning, and
    # milliseconds of training that the cluster was ahead when this machine joined it.
    "tokens_elsewhere", "ms_elsewhere",
    "workers",  # workers of the run now that have started; the supervisor writes it
    "first_ticket",  # of synchronous rounds, counted from the beginning of training
    # End of the budget for strategies that take any free ticket, counted in the same way; 0 for
    # no end.
    "end_ticket",
    "stream_end",  # 1 + number of published tickets, if text arrives during training; else 0
    "tickets_before",  # tickets that were done before this call
    "eval_asked",  # evaluations of the validation text requested during training
    "eval_taken",  # of these, evaluations that a worker has started
    # Next batch of an evaluation, plus `EVAL_ROUND` times the number of the round: one word, so no
    # batch falls between rounds. During training it stays at the first batch.
    "eval_next",
    "eval_end",  # number of batches of that evaluation
    "tasks_until_ns",  # deadline of evaluations and samples after training, monotonic, or 0
    "sample_asked",  # samples of text requested
    "sample_taken",  # of these, samples that a worker has started
)  # fmt: skip
"""Counters, each 64 bits on a cache line of its own."""
COUNTERS = Table(**{name: (1, name) for name in NAMES})


EVAL_ROUND = 1 << 32


class ControlCommand(IntEnum):
    """A command of the supervisor to every worker."""

    WAIT = 0
    TRAIN = 1
    DRAIN = 2  # finish the current step and its round, then change nothing
    EVALUATE = 3
    SAMPLE = 4
    EXIT = 5


CAPACITY = 1024
RECORD = np.dtype(
    [
        ("kind", "<u4"),
        ("worker", "<u4"),
        ("version", "<u8"),  # of a scored batch: its value of `eval_next`
        ("t_ns", "<u8"),
        ("loss", "<f8"),  # mean nats per target
        ("tokens", "<u8"),
        ("staleness", "<u8"),  # of a scored batch: steps of this call before its parameters
        ("n_bytes", "<u8"),  # bytes of text that the targets decode to
        ("nats", "<f8"),  # summed over the targets
        ("read_s", "<f4"),  # seconds of a step, by activity
        ("compute_s", "<f4"),
        ("apply_s", "<f4"),
        ("wait_s", "<f4"),
    ]
)
RING_BYTES = LINE + CAPACITY * RECORD.itemsize


class RecordKind(IntEnum):
    """The subject of a record."""

    STEP = 0
    EVALUATION = 1
    SAMPLE = 2


class Ring:
    """One worker's ring, over `RING_BYTES` bytes of the arena."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self._records = data[LINE:RING_BYTES].view(RECORD)
        self._read = self._published()
        self.n_lost = 0  # records of any kind that were overwritten before this reader copied them

    def _published(self) -> int:
        return int(_native.load_u64(self._data, 0)) // 2

    def append(self, **fields: float) -> None:
        """Write one record and publish it; only the ring's worker may call this.

        After a death within a record, the slot's next worker writes that record anew.
        """
        record = self._records[self._published() % CAPACITY]
        _native.begin_writing(self._data, 0)
        for name in RECORD.names or ():
            record[name] = fields.get(name, 0)
        _native.end_writing(self._data, 0)

    def drain(self) -> NDArray[np.void]:
        """Every record since the last call but `n_lost`, oldest first; for the supervisor only."""
        end = self._published()
        begin = max(self._read, end - CAPACITY)
        records = self._records[np.arange(begin, end) % CAPACITY]  # a copy
        _native.nobody_writes(self._data, 0, LINE, 1)  # its fence: the head is read after the copy
        begun = (int(_native.load_u64(self._data, 0)) + 1) // 2
        whole = min(max(begin, begun - CAPACITY), end)
        self.n_lost += whole - self._read
        self._read = end
        return records[whole - begin :]
