"""Progress of a study: events for observers, runs in progress, and the time left."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from mlxhog.mad.run import Point
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.study.study import PlannedRun


@dataclass(frozen=True, kw_only=True)
class ActiveRun:
    """A run that is being trained.

    Attributes:
        worker: its name, such as "1" or "2".
        candidate: canonical string of its layers.
        run: its title, such as "CR vocab=32 lr 5e-04 seed 0".
        step: of its last evaluation; 0 before the first.
        steps: most steps; None if unknown.
        acc_token: of its last evaluation; None before the first.
        seconds: since its start.
    """

    worker: str
    candidate: str
    run: str
    step: int = 0
    steps: int | None = None
    acc_token: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A run that failed or diverged.

    Attributes:
        candidate: canonical string of its layers.
        run: as of `ActiveRun`.
        status: one of `mad.run.STATUSES`.
        reason: in one line; "" for a diverged run.
    """

    candidate: str
    run: str
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best candidate so far.

    Attributes:
        candidate: canonical string of its layers.
        score: mean over tasks, in [0, 1].
        interval: half width of the interval over seeds; None with one seed.
        missing: its runs without a result.
    """

    candidate: str
    score: float
    interval: float | None = None
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """A study at one moment.

    Attributes:
        study: its name.
        done: runs with a record of any status, of all sessions.
        total: runs planned so far; None if unknown.
        elapsed_s: seconds of this session.
        eta_s: estimated seconds to the end; None before the first run has ended.
        statuses: status -> number of ended runs.
        running: in the order of workers.
        best: None before any candidate has a score.
        troubles: the latest last.
        message: text to print once, or None.
    """

    study: str
    done: int
    total: int | None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    running: tuple[ActiveRun, ...] = ()
    best: Best | None = None
    troubles: tuple[Trouble, ...] = ()
    message: str | None = None

    @property
    def fraction(self) -> float | None:
        """Share of the planned runs that ended, in [0, 1]; None without a total."""
        return None if self.total is None else min(1.0, self.done / self.total if self.total else 1)


@dataclass
class RunInProgress:
    """A run of a worker, and its last evaluation."""

    run: PlannedRun
    worker: str
    began_s: float
    point: Point | None = None

    def shown(self, now_s: float) -> ActiveRun:
        """Return its state for a board."""
        return ActiveRun(
            worker=self.worker,
            candidate=self.run.candidate,
            run=self.run.title,
            step=0 if self.point is None else self.point.step,
            steps=self.run.config.protocol.steps,
            acc_token=None if self.point is None else self.point.acc_token,
            seconds=now_s - self.began_s,
        )


class Eta:
    """Mean seconds of the runs of each kind: of a setting, whose runs take about equal times."""

    def __init__(self) -> None:
        self._spent: dict[Hashable, list[float]] = {}

    def ended(self, kind: Hashable, seconds: float) -> None:
        """Record a run that ended."""
        self._spent.setdefault(kind, []).append(seconds)

    def seconds_left(
        self,
        waiting: Iterable[Hashable],
        running: Iterable[tuple[Hashable, float]] = (),
        *,
        parallel: int = 1,
    ) -> float | None:
        """Return the seconds until all runs have ended; None before the first has.

        Args:
            waiting: kinds of the runs that have not begun. A kind without an ended run counts as
                the mean of all runs.
            running: kinds, and seconds since the begin.
            parallel: runs at once.
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


def seconds_used(records: Iterable[StudyRecord]) -> float:
    """Return the time in which any of some runs was in progress."""
    spans = []
    for record in records:
        end = datetime.fromisoformat(record.at).timestamp()
        spans.append((end - record.seconds, end))
    used, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        used += max(0.0, end - max(begin, until))
        until = max(until, end)
    return used
