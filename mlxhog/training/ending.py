"""The end of a run: when each part has to be over, what ends it early, its last evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from mlxhog.arena.control import EVAL_ROUND, Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config.budget import END_S, SAMPLING_S, STOP_S, late_start, training_s
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError, WorkerFailed
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.monitor import Monitor
from mlxhog.report.views import Tell
from mlxhog.training.evaluation import EVALUATING_S, SEGMENT, HeldOutPart, Score, Scores
from mlxhog.training.plan import Plan
from mlxhog.training.resume import Resumption
from mlxhog.training.session import Session

SAMPLE_S = 60.0  # a sample without a budget of time
LEAVING_S = 5.0  # workers that are asked to leave
LEAST_S = 1.0  # for workers to leave, for a sample or for a worker's own score, however late it is
LEAST_EVALUATION_S = 20.0  # for the last one, however late it is, unless it takes less
EVALUATING_PART = 0.05  # of the workers' time, for evaluations that are to be every so often
FASTER = 3.0  # a loss, than a gradient
MARGIN = 2.0  # for other programs
BATCH_S = 3.0  # how long a batch in hand is waited for when the time is over
GAVE_UP_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others go on."""


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

    def spent_s(self) -> float:
        """The seconds since the run began."""
        return (monotonic_ns() - self._began_ns) / 1e9

    def training_s(
        self, *, save_s: float, evaluates: bool, samples: bool, evaluation_s: float = 0.0
    ) -> float | None:
        """How long training may take that begins now; None where time does not limit it.

        Args:
            save_s: what the checkpoint after it will take.
            evaluates: whether it is evaluated then.
            samples: whether a sample is written then.
            evaluation_s: what the evaluation will take.
        """
        if self._seconds is None or self._whole:
            return self._seconds
        return training_s(
            self._seconds,
            start_s=self.spent_s(),
            save_s=save_s,
            evaluates=evaluates,
            samples=samples,
            evaluation_s=MARGIN * evaluation_s,
        )

    def late_start(self, start_s: float, training_s: float, *, measured: bool) -> str | None:
        """Say that the start took much of the time; see `mlxhog.config.budget.late_start`."""
        if self._seconds is None or self._whole:
            return None
        return late_start(self._seconds, start_s=start_s, training_s=training_s, measured=measured)

    def evaluation_ns(
        self, *, parts: int, trained_s: float, least_s: float, sample_s: float = 0.0
    ) -> int:
        """When an evaluation has to end that begins now and shares the rest of the time.

        Args:
            parts: of the time that is left.
            trained_s: the time of training.
            least_s: for this one, however late it is.
            sample_s: of the time that is left, for a sample afterwards.
        """
        if self._seconds is None:
            seconds = max(EVALUATING_S, trained_s) / parts
        else:
            seconds = max((self._rest_s() - sample_s) / parts, least_s)
        return monotonic_ns() + int(seconds * 1e9)

    def sample_s(self) -> float:
        """How long a sample may take now: a short one is written however late it is."""
        return SAMPLE_S if self._seconds is None else max(self._rest_s(), LEAST_S)

    def step_s(self, save_s: float) -> float:
        """How long a step in hand may take so that its checkpoint is still saved in time.

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


@dataclass
class HeldOutWatch:
    """The held-out evaluations of a run that trains: the next, the best, and the end they bring.

    Only evaluations while training count; all are of the same part of the held-out text. A
    checkpoint remembers the best so far, so a resumed run counts on, unless its evaluations
    are of another part now. The best weights are saved right after their evaluation. Lock-free
    workers go on while one of them evaluates, so what is saved is the model that was evaluated and
    the steps since.

    Attributes:
        patience: evaluations without a new best that end the run; None is any number.
        stop_at_loss: bits per byte that end the run; None is none.
        bits_per_byte: the best so far; None before the first.
        step: of the run, at which that was.
        since: evaluations after it.
        keeps_best: whether its weights are saved.
        ended: why training has ended before its budget; None where it has not.
        text: name of the part.
    """

    patience: int | None = None
    stop_at_loss: float | None = None
    bits_per_byte: float | None = None
    step: int = 0
    since: int = 0
    keeps_best: bool = False
    ended: str | None = None
    text: str = ""
    _evaluations: int = 0
    _asked_at: tuple[int, int] | None = None

    @classmethod
    def of(cls, config: TrainConfig, resumption: Resumption | None, text: str) -> Self:
        """Begin, or go on where a checkpoint was saved, with as much patience as at first."""
        watch = cls(config.patience, config.stop_at_loss, keeps_best=config.keeps_best, text=text)
        best = None if resumption is None else resumption.checkpoint.state.get("best")
        if isinstance(best, Mapping) and best.get("text") == text:
            watch.bits_per_byte, watch.step = best["bits_per_byte"], int(best["step"])
        return watch

    def ask_for_next(self, session: Session, monitor: Monitor, plan: Plan) -> None:
        """Let a worker evaluate; where that is to be every so often, unless it takes too much time.

        One that is still going on is waited for, unless its worker may have died.
        """
        if plan.config.eval_every.seconds is not None:
            now = (monitor.evaluations, session.supervisor.ends())
            most_s = EVALUATING_PART * len(plan.workers) * monitor.seconds()
            if now == self._asked_at or monitor.evaluating_s > most_s:
                return
            self._asked_at = now
        session.ask("eval")

    def look(self, monitor: Monitor, save: Callable[[], bool], report: Tell) -> bool:
        """Take in an evaluation where there is a new one; returns whether training is to end.

        Where its weights are to be saved and cannot be, the best is the one before: the next that
        is better than that is saved.
        """
        if monitor.evaluations == self._evaluations or monitor.val_bits_per_byte is None:
            return False
        self._evaluations = monitor.evaluations
        before = self.bits_per_byte, self.step
        is_best = self.take(monitor.val_bits_per_byte, monitor.totals()[0])
        is_lost = is_best and self.keeps_best and not save()
        self.ended = self.reason_to_stop()
        if is_lost:
            self.bits_per_byte, self.step = before
        if self.ended is not None:
            report(f"{self.ended}: training ends")
        return self.ended is not None

    def close(self, run: Run, saved: Path | None, report: Tell) -> None:
        """Name the best weights; they are the last where no evaluation has named others."""
        if not self.keeps_best:
            return
        if checkpoint.best(run) is None and saved is not None:
            try:
                checkpoint.mark_best(run, saved)
            except EnvironmentLacks as error:
                report(f"no best checkpoint: {error}")
        if (best := checkpoint.best(run)) is not None:
            bits = self.bits_per_byte
            known = "" if bits is None else f", {bits:.3f} bits per byte"
            where = run.checkpoints / checkpoint.BEST
            report(f"best held-out evaluation{known}: {where} ({best.name})")

    def to_json(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        if self.bits_per_byte is None:
            return None
        return {"bits_per_byte": self.bits_per_byte, "step": self.step, "text": self.text}

    def take(self, bits_per_byte: float, step: int) -> bool:
        """Take in an evaluation; returns whether it is the best so far."""
        if self.bits_per_byte is None or bits_per_byte < self.bits_per_byte:
            self.bits_per_byte, self.step, self.since = bits_per_byte, step, 0
            return True
        self.since += 1
        return False

    def reason_to_stop(self) -> str | None:
        """Why the run is to end now; None where it goes on."""
        best = self.bits_per_byte
        if best is None:
            return None
        if self.stop_at_loss is not None and best <= self.stop_at_loss:
            return (
                f"held-out text has come to {best:.3f} bits per byte at step {self.step:,}, and "
                f"stop_at_loss is {self.stop_at_loss:g}"
            )
        if self.patience is not None and self.since >= self.patience:
            return (
                f"{self.since} held-out evaluation{'s' * (self.since > 1)} without a new best "
                f"(patience), which was {best:.3f} bits per byte at step {self.step:,}"
            )
        return None


class FinalEvaluation:
    """Evaluations of resting parameters at the end of a run, one after the other.

    What is done lies in the arena (`Scores`). A worker that dies leaves batches undone; a new round
    shares them out again. Nothing is waited for once the time is over.
    """

    def __init__(
        self, session: Session, part: HeldOutPart, monitor: Monitor, deadlines: Deadlines
    ) -> None:
        """Prepare; no worker is told anything yet."""
        self.arena, self.supervisor, self._until = session.arena, session.supervisor, session.until
        self.copies_bits_per_byte: list[float] = []
        self._session, self._monitor, self._deadlines = session, monitor, deadlines
        self._scores = Scores(session.arena.segment(SEGMENT))
        self._part, self._part_end, self._end = part, part.batches, part.batches
        self._round = self._first = self._end_ns = 0

    def begin(self) -> None:
        """Tell all workers to score the held-out text at the model.

        Where workers have parameters of their own, the time goes to the scores of these.
        """
        copies = len(self._session.strategy.copies())
        end = self._part_end if copies else len(self._scores)
        self._begin(1 + copies, end, least_s=self._least_s())

    def _begin(self, parts: int, end: int, *, least_s: float) -> None:
        """Begin at the parameters as they are now.

        Args:
            parts: evaluations that share the time from now on.
            end: batches to score.
            least_s: for this one, however late it is.
        """
        self._session.drain()  # an evaluation that ended as training did comes before this one
        self._round += 1
        self._first, self._end = self._round, end
        self._end_ns = end_ns = self._deadlines.evaluation_ns(
            parts=parts,
            trained_s=self._monitor.seconds(),
            sample_s=SAMPLING_S * self._session.strategy.config.sample_every.on,
            least_s=least_s,
        )
        counters = self.arena.counters
        counters.store("side_until_ns", end_ns)
        counters.store("eval_first", self._first)
        counters.store("eval_end", end)
        counters.store("eval_next", self._round * EVAL_ROUND)
        self.supervisor.command(Command.EVALUATE)

    def wait(self) -> Score:
        """Wait until every batch is scored, the time is over, or the user interrupts.

        Returns:
            The score of the fixed part, as much of it as was scored.

        Raises:
            ConfigError, EnvironmentLacks, WorkerFailed: see `Supervisor.poll`; a worker was given
                up, and the fixed part cannot be scored without it.
        """
        while self.supervisor.has_workers() and not self._ended():
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
        """Wait for the score of the parameters, and score what they are the average of."""
        score, session, monitor = self.wait(), self._session, self._monitor
        average = score.bits_per_byte
        if score.share < 1.0 or average is None:
            return  # a number of less text could not be compared with those before
        monitor.take_evaluation(score.nats, score.n_bytes, score.tokens)
        monitor.val_at_end = True
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
        """Go on with the fixed part alone, after a worker was given up: the run is complete.

        Raises:
            MlxhogError: the same error, where the part was all there was to score already, or no
                worker is left to score the rest of it.
        """
        is_larger, self._end = self._end > self._part_end, self._part_end
        if not is_larger or not (self._score().share == 1.0 or self.supervisor.has_workers()):
            raise error
        self.arena.counters.store("eval_end", self._end)
        self._session.report(f"the larger held-out score was left out: {error}")

    def larger(self) -> Score:
        """The score of the rest of the batches, as many as there was time for."""
        return self._scores.total(self._first, begin=self._part_end)

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
                self._begin(len(copies) - k, self._part_end, least_s=LEAST_S)
                self.copies_bits_per_byte.append(self.wait().bits_per_byte or math.nan)
        return True

    def _least_s(self) -> float:
        """How long the fixed part takes, at most, at the speed of training."""
        tokens = FASTER * self.arena.counters.load("tokens")
        if not tokens:
            return LEAST_EVALUATION_S
        seconds = MARGIN * self._monitor.seconds() * self._part.tokens / tokens
        return min(max(seconds, LEAST_S), LEAST_EVALUATION_S)

    def _score(self) -> Score:
        return self._scores.total(self._first, end=self._end)

    def _ended(self) -> bool:
        late = monotonic_ns() >= self._end_ns
        return self._score().share == 1.0 or (late and self.supervisor.resting())

    def _ended_or_died(self, ends: int) -> bool:
        return self._ended() or self.supervisor.ends() > ends

    def _doing(self) -> Doing:
        return Doing(Activity.EVALUATING, round(100 * self._score().share))


def write_sample(session: Session, monitor: Monitor, deadlines: Deadlines) -> None:
    """Let a worker write a sample of text, another one where it dies, or say why there is none."""
    supervisor, samples = session.supervisor, monitor.samples
    end_ns = monotonic_ns() + int(deadlines.sample_s() * 1e9)
    reason = "no worker was free to write one in time"
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
