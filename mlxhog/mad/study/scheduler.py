"""The scheduler: takes candidates from a sampler, starts their runs, and records the results."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import fmean

from mlxhog.base.interrupts import Interrupts
from mlxhog.base.quantities import Interval
from mlxhog.display.views import Observer
from mlxhog.mad.run import CandidateRecord, RunConfig
from mlxhog.mad.scores import LOST, CandidateScore
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.workers import Executor
from mlxhog.models.mad.sequence import canonical, parse

POLL_S = 0.2
SHOW_S = 0.5
MAX_RETRIES = 3
"""Retries of a run whose worker was killed from outside; then the run has failed."""


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """A study at one moment."""

    study: str  # its name
    done: int  # runs with a record of any status, of all sessions
    total: int | None  # runs planned so far; None if unknown
    elapsed_s: float = 0.0  # seconds of this session
    eta_s: float | None = None  # estimated seconds to the end; None before the first run has ended
    statuses: Mapping[str, int] = field(default_factory=dict)  # status -> number of ended runs
    best: CandidateScore | None = None  # None before any candidate has a score
    # runs that failed, diverged or have a remark, the latest last
    troubles: tuple[CandidateRecord, ...] = ()
    message: str | None = None  # text to print once, or None
    status: str = ""  # at the end "done" (no run is left), "budget" or "interrupted"; before it ""


class Scheduler:
    """One session of a study, whose lock the caller holds; `run` executes it once.

    `limit` has the candidates of the whole study after which no other begins, or its seconds after
    which no run begins; so it ends at the same point with and without interruptions. `keep` is
    called before each record, to store what the run shares with others.
    """

    def __init__(
        self,
        store: Store,
        study: StudyDefinition,
        executor: Executor,
        parallel: int,
        limit: Interval = Interval(),  # noqa: B008  frozen
        observer: Observer[StudyProgress] = lambda progress: None,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self._store, self._study, self._executor = store, study, executor
        self._parallel, self._limit, self._observer = parallel, limit, observer
        self._keep = keep
        self._sampler, self._pruner = study.new_sampler(), study.new_pruner(store.curve)
        self._rung = 0  # of suite lm, whose runs are queued
        self._queue: deque[RunConfig] = deque()
        self._running = 0  # number of runs in progress
        self._open: dict[str, int] = {}  # every candidate -> number of its runs to come
        self._ended: dict[str, CandidateRecord] = {}  # the runs that ended, by their keys
        self._skipped = 0  # runs that pruned candidates did not begin
        self._retries = Counter[str]()
        self._best: CandidateScore | None = None
        self._restore()
        self._n_before = len(self._ended)

    # -- a session -------------------------------------------------------------------------------

    def run(self, note: str = "") -> StudyProgress:
        """Execute runs until none is left, the limit is reached, or Ctrl-C; return the last state.

        A note is shown first. After the first Ctrl-C the runs in progress end, the second one drops
        them.

        Raises:
            EnvironmentLacks: a result cannot be recorded, such as on a full disk; the study can be
                resumed.
            WorkerFailed: runs cannot begin on the cluster.
        """
        self._began_s = self._shown_s = time.monotonic()
        is_announced = False
        if note:
            self._show(note)
        with Interrupts() as interrupts:
            while interrupts.count < 2:
                if interrupts.count == 0:
                    self._fill()
                elif self._running and not is_announced:
                    n, is_announced = self._running, True
                    runs, them = ("run", "it") if n == 1 else ("runs", "them")
                    self._show(f"finishing {n} {runs}; Ctrl-C again drops {them}")
                if not self._running:
                    break
                for run, result in self._executor.ended(POLL_S, self._pruner.should_prune):
                    self._running -= 1
                    self._finish(run, result)
                if time.monotonic() - self._shown_s >= SHOW_S:
                    self._show()
            interrupted = interrupts.count > 0
        status = "interrupted" if interrupted else "budget" if self._limit_reached() else "done"
        return replace(self._show(), status=status)

    def _fill(self) -> None:
        """Begin a run for every idle worker."""
        while self._running < self._parallel and (run := self._next()) is not None:
            self._executor.start(run, self._pruner.rungs(run))
            self._running += 1

    def _limit_reached(self) -> bool:
        """Whether the limit keeps runs from beginning that are left."""
        is_used = self._limit.due(steps=len(self._open), seconds=self._used_s())
        if self._limit.steps is not None:  # candidates, which are always finished
            count = self._study.count
            return is_used and not self._queue and (count is None or len(self._open) < count)
        needed = self._needed()
        return is_used and bool(self._queue or needed is None or len(self._ended) < needed)

    def _needed(self) -> int | None:
        """Runs of all candidates but the skipped ones; None if that is unknown."""
        return None if (total := self._study.total) is None else total - self._skipped

    def _used_s(self) -> float:
        return self._seconds_before + time.monotonic() - self._began_s  # of all sessions

    def _next(self) -> RunConfig | None:
        while not self._limit_reached():
            if self._queue:
                run = self._queue.popleft()
                if not self._pruner.is_pruned(run.candidate):
                    return run
                self._skipped += 1
                self._open[run.candidate] -= 1
                self._complete(run.candidate)
            elif len(self._open) == self._study.n_candidates or (
                (layers := self._sampler.ask()) is None
            ):
                if not self._promote():
                    break
            else:
                candidate = canonical(layers)
                self._store.add_proposal(candidate)
                self._enqueue(candidate, self._study.runs(candidate))
        return None

    def _promote(self) -> bool:
        """Queue the runs of the next rungs, once those of this one have ended; whether any is."""
        rungs = self._study.rungs
        while not (self._queue or any(self._open.values())) and self._rung + 1 < len(rungs):
            going = self._study.promoted(self._rung, self._ended.values())
            self._rung += 1
            self._skipped += (rungs[self._rung] - len(going)) * self._study.text_runs
            for row in going:
                dim = int(row.measures["dim"])
                self._enqueue(row.candidate, self._study.runs(row.candidate, self._rung, dim))
        return bool(self._queue)

    def _enqueue(self, candidate: str, runs: Iterable[RunConfig]) -> None:
        """Queue the missing runs of a candidate; without any, score it at once."""
        runs = [run for run in runs if run.key() not in self._ended]
        self._open[candidate] = len(runs)
        self._queue += runs
        self._complete(candidate)

    def _complete(self, candidate: str) -> None:
        """If all runs of a candidate have ended or are skipped, pass its score to the sampler."""
        if not self._open[candidate]:
            score = self._update_best(candidate)
            self._store.add_proposal(candidate, score)
            self._sampler.tell(parse(candidate), score)

    def _update_best(self, candidate: str) -> float:
        """Return a candidate's score, and keep the best, the first of the two on a leaderboard."""
        two = {candidate, candidate if self._best is None else self._best.candidate}
        ended = [one for one in self._ended.values() if one.candidate in two]
        self._best = self._study.rows(ended)[0]
        own = [one for one in ended if one.candidate == candidate]
        return self._study.score_of(own).selection_score

    def _finish(self, run: RunConfig, record: CandidateRecord | str) -> None:
        """Record a run that ended, or queue it again."""
        key = run.key()
        if isinstance(record, str):
            if self._retries[key] < MAX_RETRIES:
                self._retries[key] += 1
                self._queue.appendleft(run)
                self._show(f"{run.task} {run.label}: its process {record}; it is run again")
                return
            record = run.record("failed", reason=f"its process {record}, {MAX_RETRIES + 1} times")
        if record.status == "interrupted":
            self._queue.appendleft(run)
            return
        if self._keep is not None:
            self._keep()
        self._store.append(record)
        self._ended[key] = replace(record, curve=())
        self._pruner.ended(run, record)
        self._open[run.candidate] -= 1
        self._complete(run.candidate)

    def _restore(self) -> None:
        """Restore the state at the end of earlier sessions, also of killed ones.

        Their failed runs are run again.
        """
        records = self._store.records()
        self._seconds_before = seconds_used(records)
        self._ended = {one.key: one for one in records if one.status != "failed"}
        scored: dict[str, bool] = {}  # of every proposal, in order
        for one in self._store.proposals():
            scored[one.candidate] = one.score is not None
            if one.score is None:
                self._sampler.register(parse(one.candidate))
            else:
                self._sampler.tell(parse(one.candidate), one.score)
        for candidate, has_score in scored.items():
            runs = {run.key(): run for run in self._study.runs(candidate)}
            for ended in self._ended.values():
                if ended.key in runs:
                    self._pruner.ended(runs[ended.key], ended)
            missing = runs.keys() - self._ended
            if not has_score or (missing and not self._pruner.is_pruned(candidate)):
                self._enqueue(candidate, runs.values())
            else:
                self._open[candidate] = 0
                self._skipped += len(missing)
                self._update_best(candidate)

    # -- progress --------------------------------------------------------------------------------

    def _show(self, message: str | None = None) -> StudyProgress:
        """Pass the present state on, and return it."""
        self._shown_s = time.monotonic()
        records = list(self._ended.values())
        candidates = self._limit.steps
        most = None if candidates is None else candidates * self._study.runs_each - self._skipped
        known = [n for n in (most, self._needed()) if n is not None]
        total = min(known, default=None)
        progress = StudyProgress(
            study=self._store.name,
            done=len(records),
            total=total,
            elapsed_s=self._shown_s - self._began_s,
            eta_s=self._eta_s(total),
            statuses=dict(Counter(one.status for one in records)),
            best=self._best,
            troubles=tuple(
                one for one in records[self._n_before :] if one.status in LOST or one.reason
            ),
            message=message,
        )
        self._observer(progress)
        return progress

    def _eta_s(self, planned: int | None) -> float | None:
        """Seconds to the end if the remaining runs take as long as the mean of those that ended."""
        estimates = list[float]()
        if planned is not None and self._ended:
            left = max(0, planned - len(self._ended))
            mean_s = fmean(one.seconds for one in self._ended.values())
            estimates.append(mean_s * left / max(1, self._running))
        if self._limit.seconds is not None:
            estimates.append(max(0.0, self._limit.seconds - self._used_s()))
        return min(estimates, default=None)


def seconds_used(records: Iterable[CandidateRecord]) -> float:
    """Return the time in which any of some runs was in progress."""
    ends = [(datetime.fromisoformat(one.at).timestamp(), one.seconds) for one in records]
    used, until = 0.0, float("-inf")
    for begin, end in sorted((end - seconds, end) for end, seconds in ends):
        used += max(0.0, end - max(begin, until))
        until = max(until, end)
    return used
