"""Asynchronous successive halving: candidates that rank low at a rung are pruned.

A rung is a number of training steps before the end of a run: r0, 3 r0, 9 r0. There the candidate is
compared with all others that have reached it on the same runs, by the mean accuracy over tasks. It
continues if it is among the best third. No run waits for another; fewer than three candidates, or
one task, decide nothing.

Recall is learned in a sudden jump (plain attention makes no progress for 880 steps before it), so
tasks with a `phase_transition`, recall, depo and state tracking, have no rung before step 1,000.

Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, arXiv:1810.05934.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mlxhog.mad.run import CandidateRecord, EvalPoint, RunConfig
from mlxhog.mad.scores import LOST
from mlxhog.mad.tasks import find
from mlxhog.mad.training.evaluation import max_steps

ETA = 3
"""The best 1 / ETA of the candidates at a rung continue; the next one is ETA times later."""
RUNGS = 3
FIRST = 300
FIRST_OF_JUMPS = 1000
"""The earliest rung of tasks with a phase transition: measure their jumps before lowering it."""
MIN_TASKS = 2
"""The fewest tasks for a decision."""

Cell = tuple[Any, ...]
"""The run of a candidate on which it is compared with others: task, label, seed, and sweep entry.
"""


class Pruner:
    """Records the accuracies of every candidate at the rungs, and prunes the worse candidates.

    `curve` returns the evaluations of a run that ended, by its key. Without `rungs` none is pruned.
    """

    def __init__(self, curve: Callable[[str], Sequence[EvalPoint]], rungs: int = RUNGS) -> None:
        self._curve, self._n = curve, rungs
        self._pruned: set[str] = set()
        # number of a rung -> candidate -> cell -> accuracy there
        self._reached: dict[int, dict[str, dict[Cell, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def rungs(self, run: RunConfig) -> tuple[int, ...]:
        """Return the steps before its end at which a run may be pruned; () for a short run."""
        limit = max_steps(run)
        earliest = FIRST_OF_JUMPS if find(run.task).phase_transition else FIRST
        first = max(earliest, limit // ETA**RUNGS)
        return tuple(step for k in range(self._n) if (step := first * ETA**k) < limit)

    def should_prune(self, run: RunConfig, point: EvalPoint) -> bool:
        """Compare the candidate with all others that have reached the rung on the same runs."""
        passed = [k for k, step in enumerate(self.rungs(run)) if step <= point.step]
        for k in passed:
            self._reached[k][run.candidate].setdefault(_cell(run), point.acc_macro)
        if passed and not self._is_promising(run.candidate, passed[-1]):
            self._pruned.add(run.candidate)
        return self.is_pruned(run.candidate)

    def is_pruned(self, candidate: str) -> bool:
        """Whether a candidate was pruned, so that its other runs are skipped."""
        return candidate in self._pruned

    def ended(self, run: RunConfig, record: CandidateRecord) -> None:
        """Record the last accuracy of a run at every later rung, or 0 if it diverged or failed.

        Runs of earlier sessions count, too.
        """
        if not self._n:
            return
        lost, pruned = record.status in LOST, record.status == "pruned"
        if pruned:
            self._pruned.add(run.candidate)
        by_val = run.recipe.select == "val" and record.val_macro is not None
        end = 0.0 if lost else record.val_macro if by_val else record.acc_macro
        rungs, curve = self.rungs(run), () if lost else self._curve(run.key())
        for k in range(self._n):
            step = rungs[k] if k < len(rungs) else math.inf
            if pruned and step > record.steps:
                return
            there = next((point.acc_macro for point in curve if point.step >= step), end)
            self._reached[k][run.candidate][_cell(run)] = there or 0.0

    def _is_promising(self, candidate: str, k: int) -> bool:
        reached = self._reached[k]
        cells = reached[candidate].keys()
        scores = {
            name: _score({cell: values[cell] for cell in cells})
            for name, values in reached.items()
            if cells <= values.keys()
        }
        if len({task for task, *_ in cells}) < MIN_TASKS or len(scores) < ETA:
            return True
        better = sum(score > scores[candidate] for score in scores.values())
        return better < math.ceil(len(scores) / ETA)


def _cell(run: RunConfig) -> Cell:
    return run.task, run.label, run.seed, run.recipe.lr, run.recipe.weight_decay


def _score(values: Mapping[Cell, float]) -> float:
    """Mean over tasks of the mean over task configs of the best accuracy of the sweep."""
    best: dict[str, dict[Cell, float]] = defaultdict(dict)
    for (task, *at, _, _), value in values.items():
        best[task][tuple(at)] = max(value, best[task].get(tuple(at), 0.0))
    return fmean(fmean(own.values()) for own in best.values())
