"""Progress of a study: what observers see, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.study.store import StudyRecord


@dataclass(frozen=True)
class ActiveRun:
    """A run that is being trained: its plan, the name of its worker, and its last evaluation."""

    plan: RunConfig
    worker: str
    began_s: float = field(default_factory=time.monotonic)
    point: Point | None = None

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.began_s


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
        troubles: runs that failed or diverged, the latest last.
        message: text to print once, or None.
        status: at the end "done" (no run is left), "budget" or "interrupted"; before it "".
    """

    study: str
    done: int
    total: int | None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    running: tuple[ActiveRun, ...] = ()
    best: Best | None = None
    troubles: tuple[StudyRecord, ...] = ()
    message: str | None = None
    status: str = ""

    @property
    def fraction(self) -> float | None:
        """Share of the planned runs that ended, in [0, 1]; None without a total."""
        return None if self.total is None else min(1.0, self.done / self.total if self.total else 1)


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
