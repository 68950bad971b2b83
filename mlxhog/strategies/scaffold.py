"""SCAFFOLD: local SGD with control variates (Karimireddy et al. 2020, arXiv:1910.06378).

Where workers train on different text, each one's steps drift towards its own optimum. Here worker i
steps along g - c_i + c: c_i is the recent mean of its gradients, and c the mean of all c_i.
After a round of K_i steps at the step size eta, from x to y_i (Option II),

    c_i <- c_i - c + (x - y_i) / (K_i eta)         x <- mean of y_i         c <- mean of c_i

With plain SGD at a constant step size the first line is the mean of the round's gradients. With any
other optimizer, schedule or clipping it is not, so that mean itself is taken, of the gradients that
the backend returned. A worker without a step in a round keeps its c_i. All workers take part
in every round, so c stays the mean of all c_i, which are 0 at first: the first round is local SGD.
Clipping is by the norm of g - c_i + c.

    segment                           dtype    meaning
    anchor                            float32  x (`local.py`)
    control                           float32  c; each worker writes its share
    control.1 .. control.P            float32  c_i
    control.next.1 .. control.next.P  float32  the sum of the round's gradients

A meeting has three stages: the share of the average and of c; c_i and the anchor; the worker's copy
and an empty sum.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.backends.backend import Float32, Grads
from mlxhog.optim.rule import parameter
from mlxhog.strategies.context import Context
from mlxhog.strategies.local import (
    Anchored,
    LocalWorker,
    Stage,
    average_share,
    dense,
    keep_anchor,
    take_average,
)
from mlxhog.strategies.rounds import StepRecord

CONTROL = "control"


def average_controls(strategy: Scaffold, arena: Arena, rank: int) -> None:
    """First stage: a worker's share of the average, and of the mean control variate."""
    average_share(strategy, arena, rank)
    span, workers = strategy.share(arena, rank), strategy.workers
    total = next_control(strategy, arena, 0, span).copy()
    for other in range(1, workers):
        total += next_control(strategy, arena, other, span)
    np.copyto(arena.segment(CONTROL)[span], total * np.float32(1.0 / workers))


def take_control(strategy: Scaffold, arena: Arena, rank: int) -> None:
    """Second stage: a worker's control variate, and its share of the anchor."""
    span = slice(arena.layout.probe.offset)
    np.copyto(arena.segment(_own(rank))[span], next_control(strategy, arena, rank, span))
    keep_anchor(strategy, arena, rank)


def begin_round(strategy: Scaffold, arena: Arena, rank: int) -> None:
    """Last stage: a worker's copy, and no gradient in its sum."""
    arena.segment(_next(rank)).fill(0.0)
    take_average(strategy, arena, rank)


def next_control(strategy: Scaffold, arena: Arena, rank: int, span: slice) -> Float32:
    """A part of a worker's next control variate: the same through all stages but the last."""
    steps = strategy.updates_in_round(arena, rank)
    if steps == 0:
        return arena.segment(_own(rank))[span]
    total: Float32 = arena.segment(_next(rank))[span] * np.float32(1.0 / steps)
    return total


def _own(rank: int) -> str:
    return f"{CONTROL}.{rank + 1}"


def _next(rank: int) -> str:
    return f"{CONTROL}.next.{rank + 1}"


class Scaffold(Anchored):
    """Local SGD whose steps are corrected by control variates."""

    stages: ClassVar[tuple[Stage, ...]] = (average_controls, take_control, begin_round)

    def kept_segments(self) -> tuple[str, ...]:
        """Copies, anchor, and all control variates: a run may be resumed within a round."""
        ranks = range(self.workers)
        return (*super().kept_segments(), CONTROL, *map(_own, ranks), *map(_next, ranks))

    def models_per_meeting(self) -> int:
        """The control variates as well."""
        return super().models_per_meeting() + 1

    def worker(self, context: Context) -> LocalWorker:
        """Prepare one worker."""
        return ScaffoldWorker(context)


class ScaffoldWorker(LocalWorker):
    """Corrected local steps."""

    def corrected(self, grads: Grads) -> Grads:
        """`g - c_i + c`."""
        arena = self.context.arena
        directions: Grads = {}
        own, mean = arena.segment(_own(self.context.rank)), arena.segment(CONTROL)
        for name, grad in grads.items():
            slot = arena.layout.slots[name]
            by = parameter(mean, slot) - parameter(own, slot)
            directions[name] = dense(grad, slot.shape) + by
        return directions

    def apply(self, grads: Grads, direction: Grads, norm: float, record: StepRecord) -> None:
        """Add up the gradient of the backend, and step along the corrected one."""
        arena, rank = self.context.arena, self.context.rank
        for name, grad in grads.items():
            slot = arena.layout.slots[name]
            total = parameter(arena.segment(_next(rank)), slot)
            total += dense(grad, slot.shape)
        super().apply(grads, direction, norm, record)
