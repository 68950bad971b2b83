"""Asynchronous successive halving: candidates that stand low at a rung are given up.

A rung is a number of training steps: r0, 3 r0, 9 r0, as far as they lie before the end of a run.
When a run reaches one, its candidate is compared with all others that have come as far on the same
runs, by the score that these runs make there: the mean over tasks. It goes on if it is among the
best third. Nobody waits for anybody, so an early decision has fewer to compare with; none is made
before as many candidates have come as far as one of which goes on, nor on one task alone.

Recall is learned in a sudden jump, plain attention standing still for 880 steps before it, so the
recall tasks have no rung before step 1,000.

Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, arXiv:1810.05934.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.scores import LOST
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.study import PlannedRun
from mlxhog.mad.training.evaluation import step_limit


class Pruner(Protocol):
    """Ends runs that are not worth going on with."""

    def rungs(self, run: PlannedRun) -> tuple[int, ...]:
        """Return the steps at which a run asks."""

    def go_on(self, run: PlannedRun, point: Point) -> bool:
        """Answer a run at a rung."""

    def has_given_up(self, candidate: str) -> bool:
        """Return whether the runs of a candidate that have not begun are to be spared."""

    def ended(self, run: PlannedRun, record: Record) -> None:
        """Learn what became of a run, or became of it in an earlier session."""


class Unpruned:
    """Every run goes on to its end."""

    def rungs(self, run: PlannedRun) -> tuple[int, ...]:
        """See `Pruner.rungs`."""
        return ()

    def go_on(self, run: PlannedRun, point: Point) -> bool:
        """See `Pruner.go_on`."""
        return True

    def has_given_up(self, candidate: str) -> bool:
        """See `Pruner.has_given_up`."""
        return False

    def ended(self, run: PlannedRun, record: Record) -> None:
        """See `Pruner.ended`."""


ETA = 3
RUNGS = 3
TASKS = 2
"""No decision is made on fewer tasks."""
FIRST = 300
FIRST_OF_RECALL = 1000
"""Earliest rungs: choose no smaller ones without measuring when the oracles jump."""


def rungs_of(config: RunConfig) -> tuple[int, ...]:
    """Return the steps at which a run asks whether to go on, rising; none for a short run."""
    per_epoch = math.ceil(config.settings["train_rows"] / config.protocol.batch_size)
    limit = step_limit(config.protocol, per_epoch)
    earliest = FIRST_OF_RECALL if "recall" in config.task else FIRST
    first = max(earliest, limit // ETA**RUNGS)
    return tuple(step for k in range(RUNGS) if (step := first * ETA**k) < limit)


class _Place(NamedTuple):
    """A run of every candidate: what it is compared on."""

    task: str
    label: str
    seed: int
    lr: float
    weight_decay: float


class Halving:
    """A `Pruner` that remembers how far every candidate came.

    Args:
        curve: the evaluations of a run that ended, by its key: `Store.curve`.

    Rebuilt from the records of earlier sessions through `ended`.
    """

    def __init__(self, curve: Callable[[str], Sequence[Point]]) -> None:
        self._curve = curve
        self._given_up: set[str] = set()
        # rung -> candidate -> place -> accuracy there
        self._reached: dict[int, dict[str, dict[_Place, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def rungs(self, run: PlannedRun) -> tuple[int, ...]:
        """See `Pruner.rungs`."""
        return rungs_of(run.config)

    def go_on(self, run: PlannedRun, point: Point) -> bool:
        """See `Pruner.go_on`."""
        passed = [k for k, step in enumerate(rungs_of(run.config)) if step <= point.step]
        for k in passed:
            self._reached[k][run.candidate].setdefault(_place(run), point.acc_macro)
        if passed and not self._is_worth_it(run.candidate, passed[-1]):
            self._given_up.add(run.candidate)
        return not self.has_given_up(run.candidate)

    def has_given_up(self, candidate: str) -> bool:
        """Whether the rest of a candidate's runs need not be made."""
        return candidate in self._given_up

    def ended(self, run: PlannedRun, record: Record) -> None:
        """See `Pruner.ended`: a run that ended stands at every later rung with its last accuracy.

        A run that was lost scores 0 at every rung.
        """
        lost, pruned = record.status in LOST, record.status == "pruned"
        if pruned:
            self._given_up.add(run.candidate)
        rungs = rungs_of(run.config)
        curve = () if lost else self._curve(run.key)
        for k in range(RUNGS):
            step = rungs[k] if k < len(rungs) else math.inf
            if pruned and step > record.steps:
                return
            there = next((point.acc_macro for point in curve if point.step >= step), None)
            end = 0.0 if lost else _at_the_end(run, record)
            self._reached[k][run.candidate][_place(run)] = end if there is None else there

    def _is_worth_it(self, candidate: str, k: int) -> bool:
        reached = self._reached[k]
        places = reached[candidate].keys()
        if len({place.task for place in places}) < TASKS:
            return True
        scores = {
            name: _score({place: values[place] for place in places})
            for name, values in reached.items()
            if places <= values.keys()
        }
        if len(scores) < ETA:
            return True
        better = sum(score > scores[candidate] for score in scores.values())
        return better < math.ceil(len(scores) / ETA)


def _place(run: PlannedRun) -> _Place:
    config, protocol = run.config, run.config.protocol
    return _Place(config.task, run.label, config.seed, protocol.lr, protocol.weight_decay)


def _at_the_end(run: PlannedRun, record: Record) -> float:
    """Accuracy on the rows that decide, which those of the curve are, too."""
    if run.config.protocol.select == "val" and record.val_macro is not None:
        return record.val_macro
    return record.acc_macro


def _score(values: dict[_Place, float]) -> float:
    """Mean over tasks of the mean over settings of the best optimiser point."""
    best: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for place, value in values.items():
        at = (place.label, place.seed)
        best[place.task][at] = max(value, best[place.task].get(at, 0.0))
    return fmean(fmean(own.values()) for own in best.values())
