"""What a worker of a candidate does beside its steps: score the rows that are not trained on.

Each worker leaves its newest score in the arena, where it stays until it is read:

    segment  byte        type    meaning
    scores   256 k       u64     scores that the worker of slot k + 1 has left, n
             256 k + 8   RECORD  the newest, where n is even, and at 256 k + 128 where it is odd

Being asked again, it writes beside the newest one; the supervisor asks when it has read that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import records
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.mad.training.rows import Drawn
from mlxhog.mad.training.scoring import score
from mlxhog.models.mad.config import MADConfig
from mlxhog.strategies import Context
from mlxhog.training.job import Job
from mlxhog.training.side_jobs import takes_on

SEGMENT = "scores"
LINE = 256
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


def segment(workers: int) -> tuple[str, int]:
    """Type and length of the arena's segment; see `arena.plan`."""
    return "uint8", workers * LINE


class Scores:
    """One worker's scores, over its part of the arena's segment.

    Concurrency: one process leaves, one takes.
    """

    def __init__(self, data: NDArray[np.uint8], slot: int) -> None:
        """Wrap the part of slot `slot`; scores that were left before are not taken."""
        self._line = data[(slot - 1) * LINE : slot * LINE]
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
        found: np.void = self._place(count).copy()[0]
        return found


@dataclass(frozen=True)
class HeldOut:
    """What scoring needs beside the worker; picklable.

    Attributes:
        drawn: the rows.
        model: the architecture.
    """

    drawn: Drawn
    model: MADConfig

    def open(self, job: Job, context: Context, ring: records.Ring) -> ScoreJobs:
        """Draw the rows in a worker."""
        return ScoreJobs(self, job, context, ring)


class ScoreJobs:
    """Evaluations; each that is asked for is taken on by one worker."""

    def __init__(self, held_out: HeldOut, job: Job, context: Context, ring: records.Ring) -> None:
        """Draw the rows."""
        self.held_out, self.job, self.context = held_out, job, context
        self._scores = Scores(context.arena.segment(SEGMENT), job.slot)
        held_out.drawn.dataset()

    def serve(self) -> None:
        """See `SideJobs.serve`."""
        if takes_on(self.context, "eval_asked", "eval_taken"):
            self._score()

    def evaluate_rest(self) -> None:
        """See `SideJobs.evaluate_rest`; the rows are too few to share out."""
        self.serve()

    def _score(self) -> None:
        context, held_out = self.context, self.held_out
        steps, read_ns = context.arena.counters.load("steps"), monotonic_ns()
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)
        found = score(
            context.backend, held_out.drawn.dataset(), held_out.model, beat=context.entry.beat
        )
        self._scores.leave(
            steps=steps,
            t_ns=read_ns,
            acc_token=found.acc_token,
            acc_macro=found.acc_macro,
            val_token=found.val_token or 0.0,
            val_macro=found.val_macro or 0.0,
        )
