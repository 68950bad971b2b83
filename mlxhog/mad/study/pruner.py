"""Who ends runs that are not worth going on with; the rules are in `mad.search.pruning`."""

from __future__ import annotations

from typing import Protocol

from mlxhog.mad.result import Point
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.study import PlannedRun


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
