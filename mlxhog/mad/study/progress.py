"""A study at one moment: what the scheduler tells whoever watches, about twice a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """A run that is being trained.

    Attributes:
        worker: where: "1", "2" here, or a host and a number.
        candidate: canonical string of its layers.
        run: what it is trained on, such as "CR vocab=32 lr 5e-04 seed 0".
        step: of its last evaluation; 0 before the first.
        steps: it takes at most; None where nobody knows.
        acc_token: of its last evaluation; None before the first.
        seconds: since it started.
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
    """A run that ended without an accuracy to use: failed, or diverged.

    Attributes:
        candidate: canonical string of its layers.
        run: as of `InFlight`.
        status: one of `mad.result.STATUSES`.
        reason: in one line; "" for a diverged run.
    """

    candidate: str
    run: str
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Best:
    """The candidate on top so far.

    Attributes:
        candidate: canonical string of its layers.
        score: mean over tasks, in [0, 1].
        interval: half width of the interval over seeds; None with one seed.
        missing: runs that its score still lacks.
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
        done: runs with a record, of whatever status, those of earlier sessions too.
        total: runs planned so far; None where the sampler has no end of its own.
        elapsed_s: seconds of this session.
        eta_s: seconds that are left, from the seconds of the runs that ended; None until one did.
        statuses: status -> number of ended runs.
        running: in the order of workers.
        best: None before any candidate has a score.
        troubles: the latest last.
        message: news to print once, or None.
    """

    study: str
    done: int
    total: int | None
    elapsed_s: float = 0.0
    eta_s: float | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    running: tuple[InFlight, ...] = ()
    best: Best | None = None
    troubles: tuple[Trouble, ...] = ()
    message: str | None = None

    @property
    def fraction(self) -> float | None:
        """Share of the planned runs that ended, in [0, 1]; None without a plan."""
        return None if self.total is None else min(1.0, self.done / self.total if self.total else 1)


class Observer(Protocol):
    """Something that is told how a study goes."""

    def __call__(self, progress: StudyProgress) -> None:
        """Show it; must not block."""
