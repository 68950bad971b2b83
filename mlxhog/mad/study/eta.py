"""Seconds that a study still needs, from the seconds of the runs that ended."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Eta:
    """Mean seconds of runs of one kind: a setting of a task, whose runs are about equally long."""

    def __init__(self) -> None:
        self._spent: dict[Hashable, list[float]] = {}

    def ended(self, kind: Hashable, seconds: float) -> None:
        """Take a run that ended."""
        self._spent.setdefault(kind, []).append(seconds)

    def seconds_left(
        self,
        waiting: Iterable[Hashable],
        running: Iterable[tuple[Hashable, float]] = (),
        *,
        parallel: int = 1,
    ) -> float | None:
        """Return the seconds until everything has ended; None while no run has.

        Args:
            waiting: kinds of the runs that have not begun. A kind without an ended run is taken to
                last as long as the mean of all runs.
            running: kind, and seconds since it began.
            parallel: runs that are trained at once.
        """
        every = [seconds for spent in self._spent.values() for seconds in spent]
        if not every:
            return None
        mean = sum(every) / len(every)

        def expected(kind: Hashable) -> float:
            spent = self._spent.get(kind)
            return sum(spent) / len(spent) if spent else mean

        under_way = [max(0.0, expected(kind) - seconds) for kind, seconds in running]
        work = sum(map(expected, waiting)) + sum(under_way)
        return max([work / parallel, *under_way])
