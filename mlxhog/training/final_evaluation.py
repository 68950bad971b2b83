"""The end of a run: its last held-out evaluation, by all workers, and a sample of text."""

from __future__ import annotations

import math
from functools import partial

from mlxhog.arena.control import EVAL_ROUND, Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError, WorkerFailed
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.monitor import Monitor
from mlxhog.training.deadlines import LEAST_S, MARGIN, Deadlines
from mlxhog.training.evaluation import SEGMENT, HeldOutPart, HeldOutScore, ScoreTable
from mlxhog.training.session import WorkerSession

INTERRUPTED_S = 5.0  # longest estimate of an evaluation after an interrupt
LEAST_EVALUATION_S = 20.0  # for the last evaluation, however late it is, unless it needs less
FASTER = 3.0  # speed of a loss relative to a gradient
BATCH_S = 3.0  # limit for a batch that is being scored when the time is over
GAVE_UP_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others continue."""


class FinalEvaluation:
    """Evaluations of the final parameters of a run, one after the other.

    The scores lie in the arena (`ScoreTable`). If a worker dies, a new round divides its batches
    among the others. It waits for no worker after its deadline.
    """

    def __init__(
        self,
        session: WorkerSession,
        part: HeldOutPart,
        monitor: Monitor,
        deadlines: Deadlines,
        *,
        sample_s: float = 0.0,
    ) -> None:
        """Prepare; this starts no evaluation.

        Args:
            session: of the run.
            part: of the held-out text.
            monitor: receives the scores.
            deadlines: of the run.
            sample_s: part of the remaining time that is reserved for a sample.
        """
        self.arena, self.supervisor, self._until = session.arena, session.supervisor, session.until
        self.copies_bits_per_byte: list[float] = []
        self._session, self._monitor, self._deadlines = session, monitor, deadlines
        self._sample_s = sample_s
        self._scores = ScoreTable(session.arena.segment(SEGMENT))
        self._part, self._part_end, self._end = part, part.batches, part.batches
        self._round = self._first = self._end_ns = self._interrupts = 0

    def begin(self) -> bool:
        """Let all workers score the held-out text with the model; returns whether they do.

        If workers have parameters of their own, the time is for their scores instead of the larger.
        After an interrupt they score the fixed part alone, and only if that is short.
        """
        self._session.drain()  # first an evaluation that ended together with the training
        estimate_s = self.estimate_s()
        if self._session.interrupts():
            if estimate_s >= INTERRUPTED_S:
                return False
            self._begin(self._part_end, monotonic_ns() + int(MARGIN * INTERRUPTED_S * 1e9))
            return True
        copies = len(self._session.strategy.copies())
        end = self._part_end if copies else len(self._scores)
        least_s = min(max(MARGIN * estimate_s, LEAST_S), LEAST_EVALUATION_S)
        self._begin(end, self._until_ns(1 + copies, least_s))
        return True

    def estimate_s(self) -> float:
        """Estimate the time of all workers for the fixed part.

        It is that of the evaluations during training, or follows from the speed of training;
        infinite without a step.
        """
        monitor, part = self._monitor, self._part
        if monitor.evaluations:
            workers = max(1, len(self.supervisor.seats))
            in_turn = math.ceil(part.batches / workers) / part.batches
            return in_turn * monitor.evaluating_s / monitor.evaluations
        tokens = FASTER * self.arena.counters.load("tokens")
        return monitor.seconds() * part.tokens / tokens if tokens else math.inf

    def _until_ns(self, parts: int, least_s: float) -> int:
        """The deadline of the first of several evaluations that share the remaining time."""
        return self._deadlines.evaluation_ns(
            parts=parts,
            trained_s=self._monitor.seconds(),
            sample_s=self._sample_s,
            least_s=least_s,
        )

    def _begin(self, end: int, end_ns: int) -> None:
        """Begin to score batches up to `end` with the present parameters, until a deadline."""
        self._round += 1
        self._first, self._end, self._end_ns = self._round, end, end_ns
        self._interrupts = self._session.interrupts()
        counters = self.arena.counters
        counters.store("side_until_ns", end_ns)
        counters.store("eval_first", self._first)
        counters.store("eval_end", end)
        counters.store("eval_next", self._round * EVAL_ROUND)
        self.supervisor.command(Command.EVALUATE)

    def wait(self) -> HeldOutScore:
        """Wait until every batch is scored, the time is over, or the user interrupts.

        Returns:
            The score of the fixed part, as far as it was scored.

        Raises:
            ConfigError, EnvironmentLacks, WorkerFailed: see `Supervisor.poll`; the fixed part
                cannot be scored without a worker that failed.
        """
        while self.supervisor.has_workers() and not (self._ended() or self._is_interrupted()):
            ended_or_died = partial(self._ended_or_died, self.supervisor.ends())
            limit_s = (self._end_ns - monotonic_ns()) / 1e9 + BATCH_S
            try:
                if not self._until(ended_or_died, self._doing, limit_s):
                    break
            except GAVE_UP_WORKER as error:
                self._leave_out_larger(error)
            if not self._ended():
                self._round += 1
                self.arena.counters.store("eval_next", self._round * EVAL_ROUND)
        return self._scores.total(self._first, end=self._part_end)

    def finish(self) -> None:
        """Wait for the score of the model, and score the copies that it is the average of."""
        session, monitor = self._session, self._monitor
        score = self.wait()
        if score.share < 1.0 and self._is_interrupted() and self.begin():
            score = self.wait()
        average = score.bits_per_byte
        if score.share < 1.0 or average is None:
            return  # a score of less text is not comparable with earlier ones
        monitor.take_evaluation(score.nats, score.n_bytes, score.tokens, monitor.totals()[0])
        larger, is_left_out = self.larger(), self._end == self._part_end
        if not is_left_out and larger.bits_per_byte is not None and larger.n_bytes > score.n_bytes:
            share = larger.share * self._part.larger_share
            monitor.take_final(larger.bits_per_byte, larger.tokens, share)
        if (
            not session.interrupts()
            and self.score_copies()
            and (warning := session.strategy.warning(average, self.copies_bits_per_byte))
        ):
            session.report(warning)

    def _leave_out_larger(self, error: MlxhogError) -> None:
        """Continue with the fixed part alone after a worker failed; the run is still complete.

        Raises:
            MlxhogError: the same error, if only the fixed part was to be scored, or no worker is
                left to score the rest of it.
        """
        is_larger, self._end = self._end > self._part_end, self._part_end
        if not is_larger or not (self._score().share == 1.0 or self.supervisor.has_workers()):
            raise error
        self.arena.counters.store("eval_end", self._end)
        self._session.report(f"the larger held-out score was left out: {error}")

    def larger(self) -> HeldOutScore:
        """The score of the rest of the batches, as far as time allowed."""
        return self._scores.total(self._first, begin=self._part_end)

    def score_copies(self) -> bool:
        """Score each worker's own parameters if the model is their average.

        Returns:
            Whether `copies_bits_per_byte` has all scores; not if the user interrupts or a worker
            does not finish.
        """
        session = self._session
        with session.strategy.each_copy(self.arena) as copies:
            for k, load in enumerate(copies):
                all_rest = self._until(self.supervisor.resting, Doing(Activity.EVALUATING), BATCH_S)
                if session.interrupts() or not all_rest:
                    return False
                load()
                self._begin(self._part_end, self._until_ns(len(copies) - k, LEAST_S))
                self.copies_bits_per_byte.append(self.wait().bits_per_byte or math.nan)
        return True

    def _is_interrupted(self) -> bool:
        return self._session.interrupts() > self._interrupts

    def _score(self) -> HeldOutScore:
        return self._scores.total(self._first, end=self._end)

    def _ended(self) -> bool:
        late = monotonic_ns() >= self._end_ns
        return self._score().share == 1.0 or (late and self.supervisor.resting())

    def _ended_or_died(self, ends: int) -> bool:
        return self._ended() or self.supervisor.ends() > ends

    def _doing(self) -> Doing:
        return Doing(Activity.EVALUATING, round(100 * self._score().share))


def write_sample(session: WorkerSession, monitor: Monitor, deadlines: Deadlines) -> None:
    """Let a worker write a sample of text, or another if it dies; report a missing sample."""
    supervisor, samples = session.supervisor, monitor.samples
    end_ns = monotonic_ns() + int(deadlines.sample_s() * 1e9)
    reason = "no worker was free in time"
    session.arena.counters.store("side_until_ns", end_ns)

    def is_written_or_lost(ends: int) -> bool:
        return monitor.samples > samples or supervisor.ends() > ends

    while supervisor.has_workers() and monitor.samples == samples:
        ended = partial(is_written_or_lost, supervisor.ends())
        session.ask("sample")
        supervisor.command(Command.SAMPLE)
        rest_s = (end_ns - monotonic_ns()) / 1e9
        try:
            if not session.until(ended, Doing(Activity.SAMPLING), rest_s + BATCH_S):
                break
        except GAVE_UP_WORKER as error:
            reason = str(error)  # the run is complete, and another worker may write it
    if monitor.samples == samples and not session.interrupts():
        session.report(f"no sample: {reason}; mlxhog generate writes one")
