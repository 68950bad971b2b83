"""From the runs of a study to the scores of its candidates.

One seed of a candidate scores

    setting = accuracy (acc_macro) of the best of its optimiser points
    task    = mean over the settings of the task
    score   = mean over the tasks

and a candidate the mean over its seeds, with a 95 % t-interval where there are two or more. A run
that diverged or failed scores 0 and is counted; the reference drops it before the best is taken,
and with it every setting on which an architecture always diverges.

Source: Poli et al. 2024, arXiv:2403.17844; athms/mad-lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlxhog.mad.scores.best import LOST, Best, Place, Select, best, placed, places
from mlxhog.mad.scores.interval import half_width
from mlxhog.mad.sizes import params
from mlxhog.mad.study.record import Record
from mlxhog.mad.suites import Suite
from mlxhog.models.mad.layer import Layer, make

UNFINISHED = ("partial", "pruned")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The score of one candidate.

    Attributes:
        candidate: canonical string.
        layers: one string per layer.
        score: in [0, 1], of the test rows: mean over the seeds that have all their runs, or over
            what there is while none has.
        interval: the score is `score +- interval` at 95 % (Student's t over the seeds); None
            with fewer than two that have all their runs.
        val_score: as score, of the validation rows, of the same runs; None where there are none.
        seeds: seed -> score, of the seeds that the score is made of.
        tasks: task -> score, in the suite's order; a task without a run is absent.
        acc_token: task -> mean share of right positions, of the same runs.
        ceiling: task -> the best score that is possible.
        best: the runs that the score is made of.
        params: parameters of the layers, see `sizes.params`.
        state: numbers kept per sequence after the longest row.
        seconds: of all runs together.
        status: "done", "partial" (runs are missing), "pruned" (stopped early, as worse than
            others), "diverged" or "failed" (every run was lost; the last one's way).
        n_runs: with a result, lost ones included.
        n_diverged: runs that score 0 because they diverged.
        n_failed: runs that score 0 because they failed.
        missing: the runs without a result, in words.
        select: rows that chose between optimiser points, "test" or "val".
    """

    candidate: str
    layers: tuple[str, ...]
    score: float
    interval: float | None
    val_score: float | None
    seeds: Mapping[int, float]
    tasks: Mapping[str, float]
    acc_token: Mapping[str, float]
    ceiling: Mapping[str, float]
    best: tuple[Best, ...]
    params: int
    state: int
    seconds: float
    status: str
    n_runs: int
    n_diverged: int
    n_failed: int
    missing: tuple[str, ...]
    select: Select = "test"

    @property
    def worth(self) -> float:
        """The score that orders candidates: of validation rows where those choose."""
        return self.score if self.select == "test" or self.val_score is None else self.val_score


def scores(
    records: Iterable[Record],
    suite: Suite,
    select: Select = "test",
    seeds: Sequence[int] | None = None,
) -> list[Row]:
    """Return a row for every candidate: finished ones first, the best first, small ones before.

    Args:
        records: in the order in which the runs ended; a later one replaces an earlier one of the
            same candidate, setting, point and seed. Interrupted ones are missing; those that are
            not of the suite or the seeds do not count.
        suite: what was to be run.
        select: rows whose accuracy chooses between optimiser points, and orders the candidates.
            The accuracies of both are returned, of the runs so chosen.
        seeds: those that were to be run; by default every one that has a record.

    Raises:
        StudyError: `select` is "val", and a run has no accuracy on validation rows.
    """
    runs = [run for run in records if run.status != "interrupted"]
    if seeds is None:
        seeds = sorted({run.config["seed"] for run in runs})
    wanted = places(suite, seeds)
    rows = []
    for candidate, found in placed(runs, suite).items():
        own = {place: found[place] for place in wanted if place in found}
        if own:
            rows.append(_row(candidate, own, wanted, suite, select))
    return sorted(
        rows, key=lambda row: (row.status in UNFINISHED, -row.worth, row.params, row.candidate)
    )


def _row(
    candidate: str,
    runs: Mapping[Place, Record],
    wanted: Sequence[Place],
    suite: Suite,
    select: Select,
) -> Row:
    missing = [place for place in wanted if place not in runs]
    whole = {place.seed for place in wanted} - {place.seed for place in missing}
    counted = [one for one in best(runs, select) if one.seed in whole or not whole]
    seeds = {
        seed: _score((one.task, one.acc_macro) for one in counted if one.seed == seed)
        for seed in sorted({one.seed for one in counted})
    }
    val = [(one.task, one.val_macro) for one in counted if one.val_macro is not None]
    config = next(iter(runs.values())).config
    statuses = [run.status for run in runs.values()]
    return Row(
        candidate=candidate,
        layers=tuple(candidate.split()),
        score=fmean(seeds.values()),
        interval=half_width(list(seeds.values())) if whole else None,
        val_score=_score(val) if len(val) == len(counted) else None,
        seeds=seeds,
        tasks=_tasks((one.task, one.acc_macro) for one in counted),
        acc_token=_tasks((one.task, one.acc_token) for one in counted),
        ceiling=_tasks((one.task, one.ceiling) for one in counted),
        best=tuple(counted),
        params=params(_layers(config), config["dim"]),
        state=max(run.state for run in runs.values()),
        seconds=sum(run.seconds for run in runs.values()),
        status=_status(statuses, partial=bool(missing)),
        n_runs=len(runs),
        n_diverged=statuses.count("diverged"),
        n_failed=statuses.count("failed"),
        missing=tuple(_words(place, suite) for place in missing),
        select=select,
    )


def _score(values: Iterable[tuple[str, float]]) -> float:
    return fmean(_tasks(values).values())


def _tasks(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of every task's values, in the order in which the tasks come."""
    found: dict[str, list[float]] = {}
    for task, value in values:
        found.setdefault(task, []).append(value)
    return {task: fmean(own) for task, own in found.items()}


def _status(statuses: Sequence[str], *, partial: bool) -> str:
    if "pruned" in statuses:
        return "pruned"
    if partial:
        return "partial"
    return statuses[-1] if all(status in LOST for status in statuses) else "done"


def _words(place: Place, suite: Suite) -> str:
    point = " ".join(f"{name} {value:g}" for name, value in suite.points[place.point].items())
    return f"{place.task} {place.label} {point} seed {place.seed}"


def _layers(config: Mapping[str, Any]) -> list[Layer]:
    return [
        make(layer["type"], {name: value for name, value in layer.items() if name != "type"})
        for layer in config["layers"]
    ]
