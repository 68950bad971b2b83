"""The evaluations of a run: when they are made, when they end it, and the result they lead to."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mlxhog.mad.protocol import Protocol
from mlxhog.mad.run import Callbacks, Point, RunResult
from mlxhog.mad.training.rows import Scores

DEFAULT_STEPS = 2_000
"""Where neither steps nor epochs are given."""

LEAST_STEPS = 25
"""Between two evaluations, where no interval is given: epochs of memorization have two steps."""


def step_limit(protocol: Protocol, per_epoch: int) -> int:
    """Return the most steps a run may take.

    Args:
        protocol: says steps or epochs.
        per_epoch: steps of an epoch.
    """
    if protocol.epochs is not None:
        return protocol.epochs * per_epoch
    return DEFAULT_STEPS if protocol.steps is None else protocol.steps


def interval(protocol: Protocol, per_epoch: int) -> int:
    """Return the steps from one evaluation to the next."""
    return protocol.eval_every or max(per_epoch, LEAST_STEPS)


class Evaluations:
    """Evaluations so far, and whether the run is over.

    Args:
        protocol: interval of evaluations, rows that decide, accuracy to stop at, patience.
        limit: most steps.
        per_epoch: steps of an epoch.
        callbacks: told of every evaluation, and asked at rungs whether to prune.
        rungs: steps at which the run may be pruned.

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

    def take(self, step: int, seconds: float, loss: float, scores: Scores) -> None:
        """Take an evaluation; it may end the run.

        Args:
            step: taken before it.
            seconds: since the first step.
            loss: mean training loss since the evaluation before.
            scores: found.
        """
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

    def result(self, status: str, steps: int, seconds: float, scores: Scores) -> RunResult:
        """Return what the run came to.

        Args:
            status: one of `STATUSES`; accuracies of a diverged run are 0.
            steps: taken.
            seconds: since the first step.
            scores: of the last evaluation.
        """
        if status == "diverged":
            none = None if scores.val_token is None else 0.0
            scores = Scores(0.0, 0.0, none, none)
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

        Args:
            until_ns: later steps count for the next mean; None takes all.
        """
        taken = [loss for at, loss in self._steps if until_ns is None or at <= until_ns]
        self._steps = [step for step in self._steps if until_ns is not None and step[0] > until_ns]
        return math.fsum(taken) / len(taken) if taken else math.nan
