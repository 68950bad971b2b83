"""The evaluations of a run: when they are made, what the held-out rows score, what ends the run.

Rows are scored in the process that trains, or as a side job of one of several workers, which leaves
its newest score in the arena, where it stays until it is read:

    segment  byte        type    meaning
    scores   256 k       u64     scores that the worker of slot k + 1 has left, n
             256 k + 8   RECORD  the newest, where n is even, and at 256 k + 128 where it is odd

When it scores again, it writes beside the newest one; the supervisor asks again once it has read
that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.control import Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult
from mlxhog.mad.tasks import Dataset
from mlxhog.mad.tasks.dataset import acc_macro, acc_token
from mlxhog.models.mad.config import MADConfig
from mlxhog.strategies import Context
from mlxhog.training.evaluation import takes_on
from mlxhog.training.job import Job

if TYPE_CHECKING:
    from mlxhog.mad.training.run_plan import TaskRows

DEFAULT_STEPS = 2_000
"""Where neither steps nor epochs are given."""

LEAST_STEPS = 25
"""Between two evaluations, where no interval is given: epochs of memorization have two steps."""


def step_limit(protocol: Protocol, per_epoch: int) -> int:
    """Return the most steps a run may take, of which an epoch has `per_epoch`."""
    if protocol.epochs is not None:
        return protocol.epochs * per_epoch
    return DEFAULT_STEPS if protocol.steps is None else protocol.steps


def most_steps(config: RunConfig) -> int:
    """Return the most steps that a run of one worker takes."""
    per_epoch = math.ceil(config.settings["train_rows"] / config.protocol.batch_size)
    return step_limit(config.protocol, per_epoch)


def interval(protocol: Protocol, per_epoch: int) -> int:
    """Return the steps from one evaluation to the next."""
    return protocol.eval_every or max(per_epoch, LEAST_STEPS)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies over the scored positions, in [0, 1]; see `mad/tasks/dataset.py`.

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


class Evaluations:
    """Evaluations so far, and whether the run is over.

    Attributes:
        limit: most steps.
        curve: every evaluation, of the rows that decide.
        status: how the run ends, "done" or "pruned"; None while it goes on.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        limit: int,
        per_epoch: int,
        callbacks: Callbacks,
        rungs: Iterable[int] = (),
    ) -> None:
        self.limit = limit
        self.curve: list[Point] = []
        self.status: str | None = None
        self._protocol, self._callbacks = protocol, callbacks
        self._every = interval(protocol, per_epoch)
        self._rungs = sorted(rungs)
        self._best, self._since_best = -1.0, 0

    def next_evaluation(self, step: int) -> int:
        """Return the first step after `step` at which the run is evaluated, `limit` at most."""
        regular = (step // self._every + 1) * self._every
        rungs = (rung for rung in self._rungs if rung > step)
        return min(self.limit, regular, next(rungs, self.limit))

    def take(self, step: int, seconds: float, loss: float, scores: Accuracies) -> None:
        """Take an evaluation after `step` steps, `seconds` after the first; it may end the run."""
        before = self.curve[-1].step if self.curve else 0
        token, macro = scores.deciding(self._protocol.select)
        point = Point(step=step, seconds=seconds, loss=loss, acc_token=token, acc_macro=macro)
        self.curve.append(point)
        self._callbacks.point(point)
        if token > self._best:
            self._best, self._since_best = token, 0
        else:
            self._since_best += 1
        patience = self._protocol.patience
        if self.status is not None:  # of workers that were told to stop
            return
        if (
            token >= self._protocol.stop_accuracy
            or step >= self.limit
            or (patience is not None and self._since_best >= patience)
        ):
            self.status = "done"
        elif any(before < rung <= step for rung in self._rungs) and self._callbacks.should_prune(
            point
        ):
            self.status = "pruned"

    def result(self, status: str, steps: int, seconds: float, scores: Accuracies) -> RunResult:
        """Return what the run came to; accuracies of a diverged one are 0."""
        if status == "diverged":
            none = None if scores.val_token is None else 0.0
            scores = Accuracies(0.0, 0.0, none, none)
        return RunResult(
            status=status,
            steps=steps,
            seconds=seconds,
            loss=self.curve[-1].loss if self.curve else math.nan,
            acc_token=scores.acc_token,
            acc_macro=scores.acc_macro,
            val_token=scores.val_token,
            val_macro=scores.val_macro,
            curve=tuple(self.curve),
        )


class MeanLoss:
    """Mean over the steps between two evaluations; losses that are not finite count as none."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []

    def add(self, loss: float, at_ns: int = 0) -> None:
        """Take in the loss of one step, in nats, and when it was applied."""
        if math.isfinite(loss):
            self._steps.append((at_ns, loss))

    def pop(self, until_ns: int | None = None) -> float:
        """Return the mean and begin anew; NaN where there was no step.

        Steps later than `until_ns` count for the next mean.
        """
        losses = [loss for at, loss in self._steps if until_ns is None or at <= until_ns]
        self._steps = [step for step in self._steps if until_ns is not None and step[0] > until_ns]
        return math.fsum(losses) / len(losses) if losses else math.nan


MOST_NUMBERS = 1 << 22
"""Of the widest array of one piece: large enough for speed, small beside a gradient's."""

WIDEST_LAYER = 8
"""Times the model's width: about what the inside of a layer keeps of a position."""


def score(
    backend: Backend, rows: Dataset, model: MADConfig, *, beat: Callable[[], None]
) -> Accuracies:
    """Score test and validation rows at the parameters in the backend's inbox."""
    values: list[float] = []
    for split, (x, y) in rows.splits().items():
        if split != "train":
            predictions = predict(backend, x, model, beat=beat)
            values += [acc_token(y, predictions), acc_macro(y, predictions)]
    return Accuracies(*values)


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
        self._last_taken = self._count()

    def _count(self) -> int:
        return _native.load_u64(self._line, 0)

    def _place(self, count: int) -> NDArray[np.void]:
        begin = 128 if count % 2 else 8
        return self._line[begin : begin + RECORD.itemsize].view(RECORD)

    def leave(self, steps: int, t_ns: int, scores: Accuracies) -> None:
        """Write a score, then publish it."""
        count = self._count() + 1
        numbers = [math.nan if number is None else number for number in astuple(scores)]
        self._place(count)[0] = (steps, t_ns, *numbers)
        _native.store_u64(self._line, 0, count)

    def take(self) -> tuple[int, int, Accuracies] | None:
        """Return the newest score, as `leave` got it, if it has not been taken."""
        count = self._count()
        if count == self._last_taken:
            return None
        self._last_taken = count
        steps, t_ns, token, macro, *val = self._place(count).copy()[0].item()
        return steps, t_ns, Accuracies(token, macro, *(None if math.isnan(n) else n for n in val))


class ScoreJobs:
    """Evaluations in a worker; each that is asked for is taken on by one worker."""

    def __init__(
        self, task_rows: TaskRows, model: MADConfig, job: Job, context: Context, ring: Ring
    ) -> None:
        """Draw the rows."""
        self._rows, self._model, self._context = task_rows.dataset(), model, context
        self._scores = ScoreSlot(context.arena.segment(SCORES_SEGMENT), job.slot)

    def serve(self) -> None:
        """Score the rows if that is asked for, and no other worker does."""
        context = self._context
        if not takes_on(context, "eval_asked", "eval_taken"):
            return
        steps, read_ns = context.arena.counters.load("steps"), monotonic_ns()
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)
        scores = score(context.backend, self._rows, self._model, beat=context.entry.beat)
        self._scores.leave(steps, read_ns, scores)

    def evaluate_rest(self) -> None:
        """Score all rows: they are too few to share out."""
        self.serve()
