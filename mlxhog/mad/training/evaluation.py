"""The evaluations of a run: their steps, the accuracies of the held-out rows, the end of the run.

Rows are scored in the process that trains, or as a side job of one of several workers, which leaves
its scores in a file of the run's temporary folder, from which the supervisor takes them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.control import Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Backend
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult, solved_accuracy
from mlxhog.mad.tasks import Dataset
from mlxhog.mad.tasks.dataset import ByLength, acc_by_length, acc_macro, acc_token
from mlxhog.models.mad.config import MADConfig
from mlxhog.strategies import Context
from mlxhog.training.evaluation import takes_on
from mlxhog.training.job import Job

if TYPE_CHECKING:
    from mlxhog.mad.training.run_plan import TaskRows

DEFAULT_STEPS = 2_000
"""Of a run without steps and epochs."""

LEAST_STEPS = 25
"""Between two evaluations without an interval: epochs of memorization have two steps."""


def step_limit(protocol: Protocol, per_epoch: int) -> int:
    """Return the most steps of a run with `per_epoch` steps in an epoch."""
    if protocol.epochs is not None:
        return protocol.epochs * per_epoch
    return DEFAULT_STEPS if protocol.steps is None else protocol.steps


def most_steps(config: RunConfig) -> int:
    """Return the most steps of a run of one worker."""
    per_epoch = math.ceil(config.settings["train_rows"] / config.protocol.batch_size)
    return step_limit(config.protocol, per_epoch)


def interval(protocol: Protocol, per_epoch: int) -> int:
    """Return the steps from one evaluation to the next."""
    return protocol.eval_every or max(per_epoch, LEAST_STEPS)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies over the scored positions, in [0, 1]; see `mad/tasks/dataset.py`.

    Those of the validation rows are None if there are none; `by_length` is that of the test rows.
    """

    acc_token: float
    acc_macro: float
    val_token: float | None = None
    val_macro: float | None = None
    by_length: ByLength = ()

    def deciding(self, select: str) -> tuple[float, float]:
        """Return both accuracies of the selecting rows, "test" or "val"."""
        if select == "test":
            return self.acc_token, self.acc_macro
        assert self.val_token is not None
        assert self.val_macro is not None
        return self.val_token, self.val_macro


class Evaluations:
    """Evaluations so far, and whether the run is over.

    Attributes:
        limit: most steps.
        curve: every evaluation, of the selecting rows.
        status: "done" or "pruned"; None while the run continues.
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

    def take(self, step: int, seconds: float, loss: float | None, scores: Accuracies) -> None:
        """Record an evaluation `step` steps and `seconds` after the begin; it may end the run."""
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
        if self.status is not None:  # of workers that are stopping
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
        """Return the result of the run; accuracies of a diverged one are 0."""
        if status == "diverged":
            none = None if scores.val_token is None else 0.0
            by_length = tuple((end, 0.0) for end, _ in scores.by_length)
            scores = Accuracies(0.0, 0.0, none, none, by_length)
        enough = solved_accuracy(self._protocol.stop_accuracy)
        solved = (point.step for point in self.curve if point.acc_token >= enough)
        return RunResult(
            status=status,
            steps=steps,
            seconds=seconds,
            loss=self.curve[-1].loss if self.curve else None,
            solved=next(solved, None),
            curve=tuple(self.curve),
            **vars(scores),
        )


class MeanLoss:
    """Mean over the steps between two evaluations, without losses that are not finite."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []

    def add(self, loss: float, at_ns: int = 0) -> None:
        """Add the loss of one step, in nats, and the time of its update."""
        if math.isfinite(loss):
            self._steps.append((at_ns, loss))

    def pop(self, until_ns: int | None = None) -> float | None:
        """Return the mean of the steps up to `until_ns` and remove them; None without a step."""
        losses = [loss for at, loss in self._steps if until_ns is None or at <= until_ns]
        self._steps = [step for step in self._steps if until_ns is not None and step[0] > until_ns]
        return math.fsum(losses) / len(losses) if losses else None


MOST_NUMBERS = 1 << 22
"""Of the widest array of one piece: large enough for speed, small beside a gradient."""

WIDEST_LAYER = 8
"""Times the model's width: about the numbers of a position inside a layer."""


def score(
    backend: Backend, rows: Dataset, model: MADConfig, *, beat: Callable[[], object]
) -> Accuracies:
    """Score test and validation rows at the parameters in the backend's inbox."""
    values: dict[str, float] = {}
    by_length: ByLength = ()
    for split, (x, y) in rows.splits().items():
        if split == "train":
            continue
        predictions = predict(backend, x, model, beat=beat)
        kind = "acc" if split == "test" else "val"
        values[f"{kind}_token"] = acc_token(y, predictions)
        values[f"{kind}_macro"] = acc_macro(y, predictions)
        if split == "test":
            by_length = acc_by_length(rows, predictions)
    return Accuracies(**values, by_length=by_length)


def predict(
    backend: Backend, x: NDArray[np.int32], model: MADConfig, *, beat: Callable[[], object]
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


SCORES = "scores.json"


class ScoreJobs:
    """Evaluations in a worker; one worker takes each request."""

    def __init__(
        self,
        task_rows: TaskRows,
        model: MADConfig,
        folder: Path,
        job: Job,
        context: Context,
        ring: Ring,
    ) -> None:
        """Draw the rows; scores come into the folder."""
        self._rows, self._model, self._context = task_rows.dataset(), model, context
        self._file = folder / SCORES

    def serve(self) -> None:
        """Score the rows if that is requested and no other worker does it."""
        context = self._context
        if not takes_on(context, "eval_asked", "eval_taken"):
            return
        steps, read_ns = context.arena.counters.load("steps"), monotonic_ns()
        context.copy_to_inbox()
        context.entry.beat(Phase.EVALUATE)
        scores = score(context.backend, self._rows, self._model, beat=context.entry.beat)
        leave_scores(self._file, steps, read_ns, scores)

    def evaluate_rest(self) -> None:
        """Score all rows: they are too few to divide."""
        self.serve()


def leave_scores(file: Path, steps: int, at_ns: int, scores: Accuracies) -> None:
    """Write scores after some steps; they replace others that were not taken."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps((steps, at_ns, astuple(scores))))
    part.replace(file)


def take_scores(file: Path) -> tuple[int, int, Accuracies] | None:
    """Return the newest scores, as passed to `leave_scores`, once; None if there are none."""
    taken = file.with_suffix(".taken")
    try:
        file.replace(taken)
    except FileNotFoundError:
        return None
    steps, at_ns, (token, macro, val_token, val_macro, parts) = json.loads(taken.read_text())
    by_length = tuple((end, share) for end, share in parts)
    return steps, at_ns, Accuracies(token, macro, val_token, val_macro, by_length)
