"""The scores of the candidates of a study, from its runs.

One seed of a candidate scores

    setting = accuracy (acc_macro) of the best of its optimiser points
    task    = mean over the settings of the task
    score   = mean over the tasks

and a candidate the mean over its seeds, with a 95 % t-interval for two or more. A run that diverged
or failed scores 0 and is counted; the reference drops it before it takes the best, and so drops
every setting on which an architecture always diverges.

Source: Poli et al. 2024, arXiv:2403.17844; athms/mad-lab.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

from mlxhog.errors import StudyError
from mlxhog.mad.run import params
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.suites import Suite
from mlxhog.models.mad.layers import make

Select = Literal["test", "val"]
LOST = ("diverged", "failed")
"""Statuses of a run whose accuracy counts as 0."""
UNFINISHED = ("partial", "pruned")
STATE_BYTES = 4
CONFIDENCE = 0.95


class Cell(NamedTuple):
    """The place of a run among those of its candidate; `point` is a number of the suite's."""

    task: str
    label: str
    seed: int
    point: int


def by_cell(records: Iterable[StudyRecord], suite: Suite) -> dict[str, dict[Cell, StudyRecord]]:
    """Return every candidate's runs by their places; of several runs the last.

    Runs whose setting or point is not of the suite are absent.
    """
    labels = {(setting.task, setting.label) for setting in suite.settings}
    by_candidate: dict[str, dict[Cell, StudyRecord]] = defaultdict(dict)
    for run in records:
        protocol = run.config["protocol"]
        for number, point in enumerate(suite.points):
            fits = all(protocol[name] == value for name, value in point.items())
            if fits and (run.task, run.label) in labels:
                by_candidate[run.candidate][Cell(run.task, run.label, run.seed, number)] = run
    return by_candidate


def best_points(runs: Iterable[StudyRecord], select: Select) -> list[StudyRecord]:
    """Return the best run of every seed and setting; the first of equal ones.

    Accuracies of lost runs are 0.

    Raises:
        StudyError: `select` is "val", and a run has no accuracy on validation rows.
    """
    best_of: dict[tuple[str, str, int], tuple[float, StudyRecord]] = {}
    for run in runs:
        value = run.acc_macro if select == "test" else run.val_macro
        if run.status in LOST:
            val = None if run.val_macro is None else 0.0
            value, run = 0.0, replace(run, acc_macro=0.0, acc_token=0.0, val_macro=val)
        if value is None:
            raise StudyError(
                f"{run.candidate} on {run.task} ({run.label}) has no accuracy on validation "
                "rows to select by; select by test, or run the study with --select val"
            )
        at = (run.task, run.label, run.seed)
        if at not in best_of or value > best_of[at][0]:
            best_of[at] = (value, run)
    return [run for _, run in best_of.values()]


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """The score of one candidate."""

    candidate: str  # canonical string
    # in [0, 1], of the test rows: mean over the complete seeds, or over all runs while no seed is
    # complete
    score: float
    # half width of the 95 % interval of the score (Student's t over the seeds); None with fewer
    # than two complete seeds
    interval: float | None
    # as score, with the suite's fixed step size instead of the best one; None if that is the only
    # one
    fixed_score: float | None
    val_score: float | None  # as score, of the validation rows, of the same runs; None without them
    seeds: Mapping[int, float]  # seed -> score, of the seeds in the score
    # task -> score, in the suite's order; a task without a run is absent
    tasks: Mapping[str, float]
    intervals: Mapping[str, float | None]  # task -> as interval, of its score
    acc_token: Mapping[str, float]  # task -> mean share of right positions, of the same runs
    ceiling: Mapping[str, float]  # task -> the best possible score
    best: tuple[StudyRecord, ...]  # the runs in the score, with 0 for lost ones
    params: int  # parameters of the layers at the suite's width, see `run.params`
    state: int  # numbers kept per sequence after the longest row, at the suite's width
    seconds: float  # of all runs together
    # "done", "partial" (runs are missing), "pruned" (stopped early, as worse than others),
    # "diverged" or "failed" (every run was lost, the last one so)
    status: str
    n_runs: int  # runs with a result, lost ones included
    n_diverged: int  # runs that score 0 because they diverged
    n_failed: int  # runs that score 0 because they failed
    missing: tuple[str, ...]  # the runs without a result, in words
    select: Select = "test"  # rows that select between optimiser points, "test" or "val"

    @property
    def layers(self) -> tuple[str, ...]:
        """One string per layer."""
        return tuple(self.candidate.split())

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, whose numbers are float32."""
        return STATE_BYTES * self.state

    @property
    def worth(self) -> float:
        """The score of the rows that select."""
        return self.val_score if self.select == "val" and self.val_score is not None else self.score

    @property
    def settings(self) -> dict[str, dict[str, dict[str, float]]]:
        """Task -> label of a setting -> its accuracy (mean over seeds), width and state."""
        runs_of: dict[str, dict[str, list[StudyRecord]]] = defaultdict(lambda: defaultdict(list))
        for run in self.best:
            runs_of[run.task][run.label].append(run)
        return {
            task: {
                label: {
                    "acc_macro": fmean(run.acc_macro for run in runs),
                    "dim": runs[0].config["dim"],
                    "state": runs[0].state,
                }
                for label, runs in by_label.items()
            }
            for task, by_label in runs_of.items()
        }


def scores(
    records: Iterable[StudyRecord],
    suite: Suite,
    select: Select = "test",
    seeds: Sequence[int] | None = None,
) -> list[CandidateScore]:
    """Return the score of every candidate: finished ones first, then by score, then by size.

    Args:
        records: in the order in which the runs ended; a later one replaces an earlier one of the
            same candidate, setting, point and seed. Interrupted runs count as missing; runs outside
            the suite or the seeds are ignored.
        suite: the planned runs.
        select: rows whose accuracy selects between optimiser points, and orders the candidates.
            The accuracies of both kinds of rows are returned, of the selected runs.
        seeds: the planned ones; by default every one with a record.

    Raises:
        StudyError: `select` is "val", and a run has no accuracy on validation rows.
    """
    runs = [run for run in records if run.status != "interrupted"]
    if seeds is None:
        seeds = sorted({run.seed for run in runs})
    expected = [
        Cell(setting.task, setting.label, seed, point)
        for seed in seeds
        for setting in suite.settings
        for point in range(len(suite.points))
    ]
    rows = []
    for candidate, runs_by_cell in by_cell(runs, suite).items():
        own = {cell: runs_by_cell[cell] for cell in expected if cell in runs_by_cell}
        if own:
            rows.append(_row(candidate, own, expected, suite, select))
    return sorted(
        rows, key=lambda row: (row.status in UNFINISHED, -row.worth, row.params, row.candidate)
    )


def _row(
    candidate: str,
    runs: Mapping[Cell, StudyRecord],
    expected: Sequence[Cell],
    suite: Suite,
    select: Select,
) -> CandidateScore:
    missing = [cell for cell in expected if cell not in runs]
    whole = {cell.seed for cell in expected} - {cell.seed for cell in missing}

    def best(of: Iterable[StudyRecord]) -> list[StudyRecord]:
        return [run for run in best_points(of, select) if run.seed in whole or not whole]

    def interval(values: Iterable[float]) -> float | None:
        return half_width(list(values)) if whole else None

    counted = best(runs.values())
    of_task = _by("task", counted)
    tasks = _by_seed(counted)
    seeds = {seed: fmean(own.values()) for seed, own in tasks.items()}
    at_fixed = [run for run in runs.values() if run.config["protocol"]["lr"] == suite.fixed_lr]
    fixed = _by_seed(best(at_fixed)) if len(suite.lrs) > 1 else {}
    vals = [[run.val_macro for run in own if run.val_macro is not None] for own in of_task.values()]
    numbers = [dict(layer) for layer in next(iter(runs.values())).config["layers"]]
    layers = [make(layer.pop("type"), layer) for layer in numbers]
    statuses = [run.status for run in runs.values()]
    # Settings with a width of their own count only while there is no other run.
    sized = [run for run in runs.values() if run.config["dim"] == suite.dim] or runs.values()
    return CandidateScore(
        candidate=candidate,
        score=fmean(seeds.values()),
        interval=interval(seeds.values()),
        fixed_score=fmean(fmean(own.values()) for own in fixed.values()) if fixed else None,
        val_score=fmean(map(fmean, vals)) if sum(map(len, vals)) == len(counted) else None,
        seeds=seeds,
        tasks={task: fmean(run.acc_macro for run in own) for task, own in of_task.items()},
        intervals={task: interval(own[task] for own in tasks.values()) for task in of_task},
        acc_token={task: fmean(run.acc_token for run in own) for task, own in of_task.items()},
        ceiling={task: fmean(run.ceiling for run in own) for task, own in of_task.items()},
        best=tuple(counted),
        params=params(layers, suite.dim),
        state=max(run.state for run in sized),
        seconds=sum(run.seconds for run in runs.values()),
        status=_status(statuses, partial=bool(missing)),
        n_runs=len(runs),
        n_diverged=statuses.count("diverged"),
        n_failed=statuses.count("failed"),
        missing=tuple(_words(cell, suite) for cell in missing),
        select=select,
    )


def _by(key: str, runs: Iterable[StudyRecord]) -> dict[Any, list[StudyRecord]]:
    """Runs by their task or their seed, in the order of the first of each."""
    by: dict[Any, list[StudyRecord]] = {}
    for run in runs:
        by.setdefault(getattr(run, key), []).append(run)
    return by


def _by_seed(runs: Sequence[StudyRecord]) -> dict[int, dict[str, float]]:
    """Score of every task, by seed."""
    return {
        seed: {
            task: fmean(run.acc_macro for run in runs) for task, runs in _by("task", own).items()
        }
        for seed, own in sorted(_by("seed", runs).items())
    }


def _status(statuses: Sequence[str], *, partial: bool) -> str:
    if "pruned" in statuses:
        return "pruned"
    if partial:
        return "partial"
    return statuses[-1] if all(status in LOST for status in statuses) else "done"


def _words(cell: Cell, suite: Suite) -> str:
    point = " ".join(
        f"{name} {'auto' if value is None else f'{value:g}'}"
        for name, value in suite.points[cell.point].items()
    )
    return f"{cell.task} {cell.label} {point} seed {cell.seed}"


def half_width(values: Sequence[float]) -> float | None:
    """Return the half width of the t-interval of the mean; None below 2 values.

    The values are independent and taken as normal.
    """
    n = len(values)
    if n < 2:
        return None
    from scipy.special import stdtrit

    t = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return t * float(np.std(values, ddof=1)) / math.sqrt(n)
