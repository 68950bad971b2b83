"""Asynchronous successive halving: candidates that rank low at a rung are pruned.

A rung is a number of training steps before the end of a run: r0, 3 r0, 9 r0 (`Rungs`). When a run
reaches one, its candidate is compared with all others that have reached it on the same runs, by the
mean over tasks of the accuracies there. It continues if it is among the best third. No run waits
for another, so an early decision compares fewer candidates; no decision is made with fewer than
three candidates, or on one task only.

Recall is learned in a sudden jump (plain attention makes no progress for 880 steps before it), so
tasks with `sudden`, recall, depo and state tracking, have no rung before step 1,000.

Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, arXiv:1810.05934.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.scores import LOST
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.tasks import find
from mlxhog.mad.training.evaluation import most_steps


class Pruner:
    """Ends runs of low rank early; this one ends none."""

    def rungs(self, run: RunConfig) -> tuple[int, ...]:
        """Return the steps at which a run may be pruned."""
        return ()

    def should_prune(self, run: RunConfig, point: Point) -> bool:
        """Whether a run that has reached a rung is to be ended."""
        return False

    def is_pruned(self, candidate: str) -> bool:
        """Whether the runs of a candidate that have not begun are to be skipped."""
        return False

    def ended(self, run: RunConfig, record: StudyRecord) -> None:
        """Take the result of a run, of this session or an earlier one."""


TASKS = 2
"""The fewest tasks for a decision."""


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """The steps at which a run may be pruned."""

    # the best 1 / eta of the candidates at a rung continue; the next one is eta times later
    eta: int = 3
    count: int = 3  # of rungs
    first: int = 300  # earliest one
    # likewise, of tasks with `sudden`: before you lower it, measure at which step the oracles jump
    first_of_sudden: int = 1000

    def of(self, config: RunConfig) -> tuple[int, ...]:
        """Return the rungs of a run, rising; () for a short run."""
        limit = most_steps(config)
        earliest = self.first_of_sudden if find(config.task).sudden else self.first
        first = max(earliest, limit // self.eta**self.count)
        return tuple(step for k in range(self.count) if (step := first * self.eta**k) < limit)


class _Cell(NamedTuple):
    """The run of a candidate on which it is compared with others."""

    task: str
    label: str
    seed: int
    lr: float | None
    weight_decay: float


class Halving(Pruner):
    """Records the accuracies of every candidate at the rungs, and prunes the worse candidates.

    `curve` returns the evaluations of a run that ended, by its key. `ended` also takes the runs of
    earlier sessions.
    """

    def __init__(self, curve: Callable[[str], Sequence[Point]], rungs: Rungs = Rungs()) -> None:  # noqa: B008  frozen
        self._curve, self._rungs = curve, rungs
        self._pruned: set[str] = set()
        # rung -> candidate -> cell -> accuracy there
        self._reached: dict[int, dict[str, dict[_Cell, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def rungs(self, run: RunConfig) -> tuple[int, ...]:
        """Return the rungs before the end of the run."""
        return self._rungs.of(run)

    def should_prune(self, run: RunConfig, point: Point) -> bool:
        """Compare the candidate with all others that have reached the rung on the same runs."""
        passed = [k for k, step in enumerate(self._rungs.of(run)) if step <= point.step]
        for k in passed:
            self._reached[k][run.candidate].setdefault(_cell(run), point.acc_macro)
        if passed and not self._is_worth_it(run.candidate, passed[-1]):
            self._pruned.add(run.candidate)
        return self.is_pruned(run.candidate)

    def is_pruned(self, candidate: str) -> bool:
        """Whether a candidate was pruned."""
        return candidate in self._pruned

    def ended(self, run: RunConfig, record: StudyRecord) -> None:
        """Record the last accuracy of a run at every later rung, or 0 if it diverged or failed."""
        lost, pruned = record.status in LOST, record.status == "pruned"
        if pruned:
            self._pruned.add(run.candidate)
        rungs = self._rungs.of(run)
        curve = () if lost else self._curve(run.key())
        for k in range(self._rungs.count):
            step = rungs[k] if k < len(rungs) else math.inf
            if pruned and step > record.steps:
                return
            there = next((point.acc_macro for point in curve if point.step >= step), None)
            end = 0.0 if lost else _at_the_end(run, record)
            self._reached[k][run.candidate][_cell(run)] = end if there is None else there

    def _is_worth_it(self, candidate: str, k: int) -> bool:
        reached = self._reached[k]
        cells = reached[candidate].keys()
        if len({cell.task for cell in cells}) < TASKS:
            return True
        scores = {
            name: _score({cell: values[cell] for cell in cells})
            for name, values in reached.items()
            if cells <= values.keys()
        }
        if len(scores) < self._rungs.eta:
            return True
        better = sum(score > scores[candidate] for score in scores.values())
        return better < math.ceil(len(scores) / self._rungs.eta)


def _cell(run: RunConfig) -> _Cell:
    protocol = run.protocol
    return _Cell(run.task, run.label, run.seed, protocol.lr, protocol.weight_decay)


def _at_the_end(run: RunConfig, record: StudyRecord) -> float:
    """Final accuracy on the selecting rows, as in the curve."""
    if run.protocol.select == "val" and record.val_macro is not None:
        return record.val_macro
    return record.acc_macro


def _score(values: dict[_Cell, float]) -> float:
    """Mean over tasks of the mean over settings of the best optimiser point."""
    best: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for cell, value in values.items():
        at = (cell.label, cell.seed)
        best[cell.task][at] = max(value, best[cell.task].get(at, 0.0))
    return fmean(fmean(own.values()) for own in best.values())
