"""The end of a run: when each part of it has to be over, and the last evaluation and sample."""

from __future__ import annotations

import math
from functools import partial

from mlxhog.arena.control import EVAL_ROUND, Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.config.budget import END_S, STOP_S, training_s
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.monitor import Monitor
from mlxhog.training.evaluation import SEGMENT, Score, Scores
from mlxhog.training.session import Session

EVALUATING_S = 60.0  # the last evaluation without a budget of time; more where training took more
SAMPLE_S = 60.0  # a sample without a budget of time
LEAVING_S = 5.0  # workers that are asked to leave
SAMPLING_S = 1.0  # of what is left after an evaluation
LEAST_S = 1.0  # for an evaluation, however late it is
BATCH_S = 3.0  # how long a batch in hand is waited for when the time is over


class Deadlines:
    """The moments by which a run with a budget of time keeps it, by a monotonic clock."""

    def __init__(self, began_ns: int, seconds: float | None, *, whole: bool = False) -> None:
        """Count from a moment.

        Args:
            began_ns: when the run began.
            seconds: its budget of time; None is none.
            whole: whether all of it is for training, and the run ends later.
        """
        self._began_ns, self._seconds, self._whole = began_ns, seconds or None, whole
        self._end_ns = began_ns + int(((seconds or 0.0) + END_S - STOP_S) * 1e9)

    def training_s(self, *, save_s: float, evaluates: bool) -> float | None:
        """How long training may take that begins now; None where time does not limit it.

        Args:
            save_s: what the checkpoint after it will take.
            evaluates: whether it is evaluated then.
        """
        if self._seconds is None or self._whole:
            return self._seconds
        start_s = (monotonic_ns() - self._began_ns) / 1e9
        return training_s(self._seconds, start_s=start_s, save_s=save_s, evaluates=evaluates)

    def evaluation_ns(self, *, parts: int, trained_s: float) -> int:
        """When an evaluation has to end that begins now and is the first of so many."""
        if self._seconds is None:
            seconds = max(EVALUATING_S, trained_s) / parts
        else:
            seconds = max((self._rest_s() - SAMPLING_S) / parts, LEAST_S)
        return monotonic_ns() + int(seconds * 1e9)

    def sample_s(self) -> float:
        """How long a sample may take now; none may where it is too late."""
        return SAMPLE_S if self._seconds is None else self._rest_s()

    def first_step_s(self, save_s: float) -> float:
        """How long a run without any step may wait for one and still save it in time.

        Args:
            save_s: what a checkpoint takes.
        """
        return self._rest_s() - save_s

    def leaving_s(self) -> float:
        """How long workers may take to leave."""
        if self._seconds is None:
            return LEAVING_S
        return min(max(self._rest_s(), LEAST_S), LEAVING_S)

    def _rest_s(self) -> float:
        return (self._end_ns - monotonic_ns()) / 1e9


class FinalEvaluation:
    """Evaluations of resting parameters at the end of a run, one after the other.

    What is done lies in the arena (`Scores`). A worker that dies leaves batches undone; a new round
    shares them out again. Nothing is waited for once the time is over.
    """

    def __init__(self, session: Session, monitor: Monitor, deadlines: Deadlines) -> None:
        """Prepare; no worker is told anything yet."""
        self.arena, self.supervisor, self._until = session.arena, session.supervisor, session.until
        self.copies_bits_per_byte: list[float] = []
        self._session, self._monitor, self._deadlines = session, monitor, deadlines
        self._scores = Scores(session.arena.segment(SEGMENT))
        self._round = self._first = self._end_ns = 0

    def begin(self) -> None:
        """Tell all workers to score the held-out text at the model."""
        self._begin(parts=1 + len(self._session.strategy.copies()))

    def _begin(self, parts: int) -> None:
        """Begin at the parameters as they are now, the first of so many evaluations."""
        self._round += 1
        self._first = self._round
        self._end_ns = end_ns = self._deadlines.evaluation_ns(
            parts=parts, trained_s=self._monitor.seconds()
        )
        counters = self.arena.counters
        counters.store("side_until_ns", end_ns)
        counters.store("eval_first", self._first)
        counters.store("eval_next", self._round * EVAL_ROUND)
        self.supervisor.command(Command.EVALUATE)

    def wait(self) -> Score:
        """Wait until every batch is scored, the time is over, or the user interrupts."""
        while self.supervisor.has_workers() and not self._ended():
            ended_or_died = partial(self._ended_or_died, self.supervisor.ends())
            limit_s = (self._end_ns - monotonic_ns()) / 1e9 + BATCH_S
            if not self._until(ended_or_died, self._doing, limit_s):
                break
            if not self._ended():
                self._round += 1
                self.arena.counters.store("eval_next", self._round * EVAL_ROUND)
        return self._score()

    def score_copies(self) -> bool:
        """Score each worker's own parameters, where the model is their average.

        Returns:
            Whether all are in `copies_bits_per_byte`: the user may interrupt, or a worker not rest.
        """
        session = self._session
        with session.strategy.each_copy(self.arena) as copies:
            for k, load in enumerate(copies):
                all_rest = self._until(self.supervisor.resting, Doing(Activity.EVALUATING), BATCH_S)
                if session.interrupts() or not all_rest:
                    return False
                load()
                self._begin(parts=len(copies) - k)
                self.copies_bits_per_byte.append(self.wait().bits_per_byte or math.nan)
        return True

    def _score(self) -> Score:
        return self._scores.total(self._first)

    def _ended(self) -> bool:
        late = monotonic_ns() >= self._end_ns
        return self._score().share == 1.0 or (late and self.supervisor.resting())

    def _ended_or_died(self, ends: int) -> bool:
        return self._ended() or self.supervisor.ends() > ends

    def _doing(self) -> Doing:
        return Doing(Activity.EVALUATING, round(100 * self._score().share))


def write_sample(session: Session, monitor: Monitor, deadlines: Deadlines) -> None:
    """Let one worker write a sample of text; none is waited for once a worker has died."""
    supervisor, seconds = session.supervisor, deadlines.sample_s()
    samples, ends = monitor.samples, supervisor.ends()
    if not supervisor.has_workers() or seconds <= 0.0:  # a checkpoint may take long
        return
    session.arena.counters.store("side_until_ns", monotonic_ns() + int(seconds * 1e9))
    session.ask("sample")
    supervisor.command(Command.SAMPLE)
    session.until(
        lambda: monitor.samples > samples or supervisor.ends() > ends,
        Doing(Activity.SAMPLING),
        limit_s=seconds + LEAST_S,
    )
