"""Which runs a candidate's score is made of: on every setting the best of the optimiser points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlxhog.errors import StudyError
from mlxhog.mad.study.record import Record
from mlxhog.mad.suites import Suite

Select = Literal["test", "val"]
LOST = ("diverged", "failed")
"""Ends of a run whose accuracy is 0, whatever it had reached."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands among those of its candidate.

    Attributes:
        task: full name.
        label: the setting's name within its task.
        seed: of the run.
        point: number of the optimiser point in the suite.
    """

    task: str
    label: str
    seed: int
    point: int


@dataclass(frozen=True, kw_only=True)
class Best(Place):
    """The best optimiser point of one seed on one setting.

    Attributes:
        acc_macro: of the test rows; 0 where every point was lost.
        acc_token: share of the scored test positions that are right, of the same run.
        val_macro: as acc_macro, of the validation rows; None where there are none.
        ceiling: the best accuracy that is possible.
    """

    acc_macro: float
    acc_token: float
    val_macro: float | None
    ceiling: float


def places(suite: Suite, seeds: Sequence[int]) -> list[Place]:
    """Return every run that a candidate needs, by seed, setting and point."""
    return [
        Place(task=setting.task, label=setting.label, seed=seed, point=point)
        for seed in seeds
        for setting in suite.settings
        for point in range(len(suite.points))
    ]


def placed(records: Iterable[Record], suite: Suite) -> dict[str, dict[Place, Record]]:
    """Return every candidate's runs by their places; the last one where there are several.

    Runs whose setting or point is not of the suite are left out.
    """
    labels = {(setting.task, setting.label) for setting in suite.settings}
    found: dict[str, dict[Place, Record]] = {}
    for run in records:
        task, protocol = run.config["task"], run.config["protocol"]
        for number, point in enumerate(suite.points):
            fits = all(protocol[name] == value for name, value in point.items())
            if fits and (task, run.label) in labels:
                place = Place(task=task, label=run.label, seed=run.config["seed"], point=number)
                found.setdefault(run.candidate, {})[place] = run
    return found


def best(runs: Mapping[Place, Record], select: Select) -> list[Best]:
    """Return the best point of every seed and setting that has a run; the first of equal ones.

    Args:
        runs: of one candidate, in the order of `places`.
        select: rows whose accuracy chooses.

    Raises:
        StudyError: `select` is "val", and a run has no accuracy on validation rows.
    """
    found: dict[tuple[str, str, int], tuple[float, Best]] = {}
    for place, run in runs.items():
        lost = run.status in LOST
        value = 0.0 if lost else run.acc_macro if select == "test" else run.val_macro
        if value is None:
            raise StudyError(
                f"{run.candidate} on {place.task} ({place.label}) has no accuracy on validation "
                "rows to choose by; select by test, or run the study with --select val"
            )
        at = (place.task, place.label, place.seed)
        if at not in found or value > found[at][0]:
            one = Best(
                **vars(place),
                acc_macro=0.0 if lost else run.acc_macro,
                acc_token=0.0 if lost else run.acc_token,
                val_macro=0.0 if lost and run.val_macro is not None else run.val_macro,
                ceiling=run.ceiling,
            )
            found[at] = (value, one)
    return [one for _, one in found.values()]
