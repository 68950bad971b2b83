"""Evaluations of validation text, begun by the supervisor: during training, and at the end.

The supervisor begins one evaluation at a time: a round, whose batches are scored at one state of
the parameters (`worker/background_tasks.py`). An evaluation that does not score all of its part
does not count. If a worker dies at the end, a new round begins at the first batch without a score.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlxhog.arena.control import EVAL_ROUND, ControlCommand
from mlxhog.arena.process import monotonic_ns
from mlxhog.errors import ConfigError, Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.progress import BASE, Phase, PhaseStatus
from mlxhog.training.plan.validation_subset import ScoreSums
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor.monitor import Monitor
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.session import Session

EVALUATING_SHARE = 0.05  # of the time, at most, for evaluations by time, and for saves of the best
INTERRUPTED_S = 5.0  # limit of the evaluation after an interrupt
SAMPLE_S = 10.0  # limit of the last sample
LOST_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others continue."""


class Evaluations:
    """The evaluations of a run, one after the other; the monitor gets their scores."""

    def __init__(self, session: Session[TextPlan], reporter: Reporter) -> None:
        # Of each worker's own parameters, where the model is their average.
        self.copies_bits_per_byte: list[float] = []
        self._session, self._reporter, self._monitor = session, reporter, reporter.monitor
        self._part, self._counters = session.plan.validation, session.arena.counters
        self._scores = dict[int, ScoreSums]()  # of the present evaluation, by their batches
        self._round = self._first = self._end = self._ends = self._interrupts = 0
        self._during = False  # training
        self._asked_at: tuple[int, int] | None = None
        self._unread = -1  # scores when no worker was evaluating at the last look
        self._monitor.on_score = self._add

    def _begin(self, end: int, *, during: bool = False) -> None:
        """Score batches up to `end` with the present parameters: with one worker, or with all."""
        self._scores, self._end, self._during = {}, end, during
        self._first, self._interrupts = self._round + 1, self._session.interrupts()
        until_ns = monotonic_ns() + int(INTERRUPTED_S * 1e9) if self._interrupts else 0
        self._counters.store("tasks_until_ns", until_ns)
        self._begin_round()
        if during:
            self._session.ask("eval")
        else:
            self._session.command(ControlCommand.EVALUATE)

    def _begin_round(self) -> None:  # from the first batch without a score on
        self._round += 1
        self._ends = self._session.workers.n_ended()  # more of them leave batches without a score
        place = next((k for k in range(self._end) if k not in self._scores), self._end)
        self._counters.store("eval_end", self._end)
        self._counters.store("eval_next", self._round * EVAL_ROUND + place)

    def _add(self, record: Any) -> None:
        round_, place = divmod(int(record["version"]), EVAL_ROUND)
        if round_ < self._first:
            return  # of an evaluation before the present one
        self._scores[place] = ScoreSums(
            float(record["nats"]), int(record["n_bytes"]), int(record["tokens"])
        )
        if self._during:
            self._monitor.evaluating_s += float(record["compute_s"])
            if self._share() == 1.0:
                steps_before = self._monitor.budget.steps_before
                self._tell_monitor(steps_before + int(record["staleness"]))
                self._monitor.evaluations += 1

    def _total(self, begin: int, end: int) -> ScoreSums | None:
        """The score of the batches from `begin` to `end`; None while not all have one."""
        scores = [self._scores[k] for k in range(begin, end) if k in self._scores]
        if len(scores) < end - begin or not scores:
            return None
        nats, n_bytes, tokens = zip(*scores, strict=True)
        return ScoreSums(float(np.sum(nats)), sum(n_bytes), sum(tokens))

    def _share(self) -> float:
        return len(self._scores) / self._end

    def _tell_monitor(self, step: int) -> ScoreSums | None:
        """Pass on the score of the fixed part; None if it has none."""
        score = self._total(0, self._part.batches)
        if score is None or not score.n_bytes:
            return None  # a score of less text is not comparable with earlier ones
        self._monitor.val_nats = [self._scores[k].nats for k in range(self._part.batches)]
        self._monitor.add_evaluation(*score, step)
        return score

    def ask_for_next(self) -> None:
        """Request an evaluation unless one is running or the time share is used up.

        A dead worker counts as finished, since it may have been the one; so does an evaluation that
        no worker was at in two looks, since a supervisor that stalls loses records.
        """
        session, monitor, counters = self._session, self._monitor, self._counters
        now = (monitor.evaluations, session.workers.n_ended())
        max_s = EVALUATING_SHARE * session.strategy.workers * monitor.clock.seconds()
        if session.plan.config.eval_every.seconds is None:
            max_s = math.inf
        unread, self._unread = self._unread, -1
        is_open = counters.load("eval_asked") > counters.load("eval_taken")
        if now == self._asked_at and not is_open and not session.has_background_task():
            self._unread = len(self._scores)
        is_lost = self._unread == unread >= 0
        if (now != self._asked_at or is_lost) and monitor.evaluating_s <= max_s:
            self._asked_at, self._unread = now, -1
            self._begin(self._part.batches, during=True)

    def score_base(self) -> None:
        """Let all workers score the model that a fine-tuning starts from, before its first step.

        Raises:
            MlxhogError: a worker is lost, as `Workers.watch`; the training needs it.
        """
        monitor = self._monitor
        self._begin(self._part.batches)
        self._wait()
        if self._tell_monitor(0) is not None:
            bits = monitor.state.val_bits_per_byte
            monitor.note(baselines={**monitor.state.baselines, BASE: bits})
            self._session.report(f"before the first step the {BASE} has {bits:.3f} bits per byte")

    def begin_last(self) -> None:
        """Let all workers score the validation text with the final model.

        They score the fixed part alone after an interrupt, for a few seconds, and if workers have
        parameters of their own, which are scored next.
        """
        self._reporter.drain()  # first an evaluation that ended together with the training
        alone = self._session.interrupts() or self._session.strategy.own_copies()
        self._begin(self._part.batches if alone else self._part.all_batches)

    def _wait(self) -> None:
        """Wait until every batch is scored, the user interrupts, or no worker is left to score.

        Raises:
            MlxhogError: a worker is lost, as `Workers.watch`.
        """
        session, limit_s = self._session, INTERRUPTED_S if self._interrupts else math.inf

        def doing() -> PhaseStatus:
            return PhaseStatus(Phase.EVALUATING, round(100 * self._share()))

        def is_over() -> bool:
            return (
                self._share() == 1.0
                or session.workers.n_ended() > self._ends
                or self._has_lost_records()
            )

        while session.workers.has_any() and self._share() < 1.0 and not self._is_interrupted():
            if not session.until(is_over, doing, limit_s):
                break
            if self._share() < 1.0:  # a worker has died, or records are lost
                self._begin_round()

    def _has_lost_records(self) -> bool:
        """Whether the workers have ended a round at the end of a run, and a score is missing.

        A supervisor that stalls, as in a save to a slow disk, loses records.
        """
        session, n_taken = self._session, self._counters.load("eval_next") % EVAL_ROUND
        if n_taken < self._end or not session.is_drained():
            return False
        self._reporter.drain()  # all that was written before they were drained
        return self._share() < 1.0

    def _is_interrupted(self) -> bool:
        return self._session.interrupts() > self._interrupts

    def finish(self) -> None:
        """Wait for the score of the model, and score the copies that it is the average of.

        Raises:
            Diverged: the score is not finite.
        """
        session, monitor, part = self._session, self._monitor, self._part
        try:
            self._wait()
            if self._total(0, part.batches) is None and self._is_interrupted():
                self.begin_last()
                self._wait()
        except LOST_WORKER as error:  # the run is saved
            what = "the larger validation score is left out"
            if self._total(0, part.batches) is None:
                what = "the end was not evaluated"
            session.report(f"{what}: {error}")
        score = self._tell_monitor(monitor.totals()[0])
        if score is None:
            return
        if not math.isfinite(score.nats):
            raise Diverged(
                "the loss of the validation text is not finite; lower --lr or --clip, then begin "
                "anew or --resume from an earlier checkpoint"
            )
        larger = self._total(part.batches, part.all_batches)
        if larger is not None and larger.n_bytes:
            monitor.note(
                final_bits_per_byte=larger.bits_per_byte,
                final_tokens=larger.tokens,
                final_share=part.larger_share,
            )
        try:
            are_scored = not session.interrupts() and self._score_copies()
        except LOST_WORKER as error:
            session.report(f"the workers' own parameters are not all scored: {error}")
            return
        bits = score.bits_per_byte
        if are_scored and (warning := session.strategy.warning(bits, self.copies_bits_per_byte)):
            session.report(warning)

    def _score_copies(self) -> bool:
        """Score each worker's own parameters if the model is their average; whether all are."""
        session = self._session
        with session.strategy.each_copy(session.arena) as copies:
            for load in copies:
                session.until(session.is_drained, PhaseStatus(Phase.EVALUATING))
                if session.interrupts():
                    return False
                load()
                self._begin(self._part.batches)
                self._wait()
                if (score := self._total(0, self._part.batches)) is None:
                    return False
                self.copies_bits_per_byte.append(score.bits_per_byte)
        return True


def write_sample(session: Session[TextPlan], monitor: Monitor) -> None:
    """Let a worker write a sample of text after the training; report a missing one."""
    samples, reason = monitor.samples, "no worker was free in time"
    session.arena.counters.store("tasks_until_ns", monotonic_ns() + int(SAMPLE_S * 1e9))
    session.ask("sample")
    session.command(ControlCommand.SAMPLE)
    try:
        session.until(lambda: monitor.samples > samples, PhaseStatus(Phase.SAMPLING), 2 * SAMPLE_S)
    except LOST_WORKER as error:
        reason = str(error)  # the run is complete
    if monitor.samples == samples and not session.interrupts():
        session.report(f"no sample: {reason}; mlxhog generate writes one")
