"""Evaluations of validation text, begun by the supervisor: during training, and at the end.

The supervisor begins one evaluation at a time: a round, whose batches are scored at one state of
the parameters (`side_jobs.py`). An evaluation that does not score all of its part does not count.
If a worker dies at the end, a new round begins at the first batch without a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxhog.arena.control import EVAL_ROUND, ControlCommand
from mlxhog.arena.process import monotonic_ns
from mlxhog.base import typed
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.checkpoint.run_files import BestScore
from mlxhog.config.config import TrainConfig
from mlxhog.display.monitor import Monitor
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.progress import BASE, Phase, PhaseStatus
from mlxhog.training.side_jobs import ScoreSums

if TYPE_CHECKING:
    from mlxhog.training.origin import Resumption
    from mlxhog.training.run import Training

EVALUATING_PART = 0.05  # of the time, at most, for evaluations by time, and for saves of the best
INTERRUPTED_S = 5.0  # limit of the evaluation after an interrupt
SAMPLE_S = 10.0  # limit of the last sample
GAVE_UP_WORKER = (ConfigError, EnvironmentLacks, WorkerFailed)
"""Errors of a worker that is not replaced; the others continue."""


class Evaluations:
    """The evaluations of a run, one after the other; the monitor gets their scores."""

    def __init__(self, run: Training) -> None:
        # Of each worker's own parameters, where the model is their average.
        self.copies_bits_per_byte: list[float] = []
        self._run, self._part, self._counters = run, run.plan.validation, run.arena.counters
        self._scores: dict[
            int, ScoreSums
        ] = {}  # of the batches of the present evaluation, by place
        self._round = self._first = self._end = self._ends = self._interrupts = 0
        self._during = False  # training
        self._asked_at: tuple[int, int] | None = None
        self._unread = -1  # scores when no worker was evaluating at the last look
        run.monitor.on_score = self._take

    def _begin(self, end: int, *, during: bool = False) -> None:
        """Score batches up to `end` with the present parameters: with one worker, or with all."""
        self._scores, self._end, self._during = {}, end, during
        self._first, self._interrupts = self._round + 1, self._run.interrupts()
        until_ns = monotonic_ns() + int(INTERRUPTED_S * 1e9) if self._interrupts else 0
        self._counters.store("side_until_ns", until_ns)
        self._begin_round()
        if during:
            self._run.ask("eval")
        else:
            self._run.command(ControlCommand.EVALUATE)

    def _begin_round(self) -> None:  # from the first batch without a score on
        self._round += 1
        self._ends = self._run.ends()  # more of them leave batches without a score
        place = next((k for k in range(self._end) if k not in self._scores), self._end)
        self._counters.store("eval_end", self._end)
        self._counters.store("eval_next", self._round * EVAL_ROUND + place)

    def _take(self, record: Any) -> None:
        round_, place = divmod(int(record["version"]), EVAL_ROUND)
        if round_ < self._first:
            return  # of an evaluation before the present one
        self._scores[place] = ScoreSums(
            float(record["nats"]), int(record["n_bytes"]), int(record["tokens"])
        )
        if self._during:
            self._run.monitor.evaluating_s += float(record["compute_s"])
            if self._share() == 1.0:
                steps_before = self._run.monitor.budget.steps_before
                self._tell_monitor(steps_before + int(record["staleness"]))
                self._run.monitor.evaluations += 1

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
        self._run.monitor.val_nats = [self._scores[k].nats for k in range(self._part.batches)]
        self._run.monitor.take_evaluation(*score, step)
        return score

    def ask_for_next(self) -> None:
        """Let a worker evaluate if the last evaluation is over, and they do not take too much time.

        One is over, too, if a worker has ended, since that may have been its worker; or if none has
        been evaluating at two looks, since a supervisor that stalls loses records.
        """
        run, monitor, counters = self._run, self._run.monitor, self._counters
        now = (monitor.evaluations, run.ends())
        max_s = EVALUATING_PART * run.strategy.workers * monitor.clock.seconds()
        if run.plan.config.eval_every.seconds is None:
            max_s = math.inf
        unread, self._unread = self._unread, -1
        is_open = counters.load("eval_asked") > counters.load("eval_taken")
        if now == self._asked_at and not is_open and not run.has_side_job():
            self._unread = len(self._scores)
        is_lost = self._unread == unread >= 0
        if (now != self._asked_at or is_lost) and monitor.evaluating_s <= max_s:
            self._asked_at, self._unread = now, -1
            self._begin(self._part.batches, during=True)

    def score_base(self) -> None:
        """Let all workers score the model that a fine-tuning starts from, before its first step."""
        monitor = self._run.monitor
        self._begin(self._part.batches)
        self._wait()
        if self._tell_monitor(0) is not None:
            bits = monitor.state.val_bits_per_byte
            monitor.note(baselines={**monitor.state.baselines, BASE: bits})
            self._run.report(f"before the first step the {BASE} has {bits:.3f} bits per byte")

    def begin_last(self) -> None:
        """Let all workers score the validation text with the final model.

        They score the fixed part alone after an interrupt, for a few seconds, and if workers have
        parameters of their own, which are scored next.
        """
        self._run.drain()  # first an evaluation that ended together with the training
        alone = self._run.interrupts() or self._run.strategy.own_copies()
        self._begin(self._part.batches if alone else self._part.all_batches)

    def _wait(self) -> None:
        """Wait until every batch is scored, the user interrupts, or no worker is left to score."""
        run, limit_s = self._run, INTERRUPTED_S if self._interrupts else math.inf

        def doing() -> PhaseStatus:
            return PhaseStatus(Phase.EVALUATING, round(100 * self._share()))

        def is_over() -> bool:
            return self._share() == 1.0 or run.ends() > self._ends or self._has_lost_records()

        try:
            while run.has_workers() and self._share() < 1.0 and not self._is_interrupted():
                if not run.until(is_over, doing, limit_s):
                    break
                if self._share() < 1.0:  # a worker has died, or records are lost
                    self._begin_round()
        except GAVE_UP_WORKER as error:  # the run is saved
            what = "the larger validation score is left out"
            if self._total(0, self._part.batches) is None:
                what = "the end was not evaluated"
            run.report(f"{what}: {error}")

    def _has_lost_records(self) -> bool:
        """Whether the workers have ended a round at the end of a run, and a score is missing.

        A supervisor that stalls, as in a save to a slow disk, loses records.
        """
        run, n_taken = self._run, self._counters.load("eval_next") % EVAL_ROUND
        if n_taken < self._end or not run.resting():
            return False
        run.drain()  # all that was written before they came to rest
        return self._share() < 1.0

    def _is_interrupted(self) -> bool:
        return self._run.interrupts() > self._interrupts

    def finish(self) -> None:
        """Wait for the score of the model, and score the copies that it is the average of."""
        run, monitor, part = self._run, self._run.monitor, self._part
        self._wait()
        if self._total(0, part.batches) is None and self._is_interrupted():
            self.begin_last()
            self._wait()
        score = self._tell_monitor(monitor.totals()[0])
        if score is None:
            return
        larger = self._total(part.batches, part.all_batches)
        if larger is not None and larger.n_bytes:
            monitor.take_final(larger.bits_per_byte, larger.tokens, part.larger_share)
        try:
            are_scored = not run.interrupts() and self._score_copies()
        except GAVE_UP_WORKER as error:
            run.report(f"the workers' own parameters are not all scored: {error}")
            return
        bits = score.bits_per_byte
        if are_scored and (warning := run.strategy.warning(bits, self.copies_bits_per_byte)):
            run.report(warning)

    def _score_copies(self) -> bool:
        """Score each worker's own parameters if the model is their average; whether all are."""
        run = self._run
        with run.strategy.each_copy(run.arena) as copies:
            for load in copies:
                run.until(run.resting, PhaseStatus(Phase.EVALUATING))
                if run.interrupts():
                    return False
                load()
                self._begin(self._part.batches)
                self._wait()
                if (score := self._total(0, self._part.batches)) is None:
                    return False
                self.copies_bits_per_byte.append(score.bits_per_byte)
        return True


class ValidationWatch:
    """The best evaluation during training, and early stopping.

    A checkpoint stores the best, so a resumed run continues the count, with full patience, unless
    it scores another part. The best weights are saved right after their evaluation. Lock-free
    workers continue while one evaluates, so the saved model is the evaluated one plus the steps
    since.
    """

    def __init__(self, config: TrainConfig, resumption: Resumption | None, text: str) -> None:
        self._config, self._text = config, text  # the name of the part that is scored
        self.best: BestScore | None = None
        self.since = self._evaluations = 0  # evaluations after the best
        self.ended: str | None = None  # reason for an end of training before its budget
        if resumption is not None:
            # A checkpoint was saved before its own evaluation.
            is_last = resumption.run.ended_with(resumption.checkpoint.path)
            status = resumption.run.read_status() if is_last else {}
            best = status.get("best") or resumption.state["best"]
            if best and best.get("text") == text:
                self.best = typed.read(BestScore, best)

    def look(self, monitor: Monitor, save: Callable[[], bool], report: Tell) -> bool:
        """Take in a new evaluation, if any; returns whether training is to end.

        If the weights of a new best cannot be saved, the best before it stays the best, so the next
        better evaluation is saved.
        """
        bits, step = monitor.state.val_bits_per_byte, monitor.state.val_step
        if monitor.evaluations == self._evaluations or bits is None or step is None:
            return False
        self._evaluations, config = monitor.evaluations, self._config
        before = best = self.best
        if best is None or bits < best.bits_per_byte:
            self.best = best = self._score(bits, step, monitor)
            self.since = 0
            if config.keeps_best and not save():  # the checkpoint names it
                self.best = before
        else:
            self.since += 1
        self.mark(monitor)
        if config.stop_at_loss is not None and best.bits_per_byte <= config.stop_at_loss:
            self.ended = (
                f"validation text reached {best.bits_per_byte:.3f} bits per byte at step "
                f"{best.step:,}, and stop_at_loss is {config.stop_at_loss:g}"
            )
        elif config.patience is not None and self.since >= config.patience:
            self.ended = (
                f"{self.since} validation evaluation{'s' * (self.since > 1)} without a new best "
                f"(patience), which was {best.bits_per_byte:.3f} bits per byte at step "
                f"{best.step:,}"
            )
        if self.ended is not None:
            report(f"{self.ended}: training ends")
        return self.ended is not None

    def _score(self, bits: float, step: int, monitor: Monitor) -> BestScore:
        nats = tuple(monitor.val_nats)
        return BestScore(bits_per_byte=bits, step=step, text=self._text, nats=nats)

    def mark(self, monitor: Monitor) -> None:
        """Let views of the run show the best."""
        if (best := self.best) is not None:
            monitor.note(best_bits_per_byte=best.bits_per_byte, best_step=best.step)

    def close(self, run: Run, saved: Path | None, monitor: Monitor, report: Tell) -> None:
        """Compare the evaluation of the end, and report a validation loss that rose.

        These are the last where no evaluation has a score.
        """
        if not self._config.keeps_best:
            return
        result, kept, rose = monitor.progress(), None, False
        last = result.val_bits_per_byte or math.inf
        before = math.inf if self.best is None else self.best.bits_per_byte
        is_best = result.val_step == result.step and last < before
        try:
            if saved is not None and (is_best or checkpoint.best(run) is None):
                checkpoint.mark_best(run, saved)
                self.best = self._score(last, result.step, monitor) if is_best else self.best
            if (kept := checkpoint.best(run)) and self.best and last < math.inf:
                noise = checkpoint.noise(monitor.val_nats, self.best.nats, result.val_bytes or 1)
                self.best = replace(self.best, noise=noise)
                if rose := checkpoint.is_worse(last, self.best.bits_per_byte, noise):
                    checkpoint.link_model(run, kept)
        except EnvironmentLacks as error:
            report(f"no link leads to the best checkpoint: {error}")
        self.mark(monitor)
        if kept and self.best and rose:
            report(
                f"validation loss rose: best validation evaluation {self.best.bits_per_byte:.3f} "
                f"bits per byte at step {self.best.step:,}, the last {last:.3f}; generate, eval, "
                f"serve and convert take the best ({kept.name}), --resume the last"
            )

    def to_json(self) -> dict[str, Any] | None:
        """The values for a checkpoint."""
        return None if self.best is None else asdict(self.best)


def write_sample(run: Training) -> None:
    """Let a worker write a sample of text after the training; report a missing one."""
    monitor, samples, reason = run.monitor, run.monitor.samples, "no worker was free in time"
    run.arena.counters.store("side_until_ns", monotonic_ns() + int(SAMPLE_S * 1e9))
    run.ask("sample")
    run.command(ControlCommand.SAMPLE)
    try:
        run.until(lambda: monitor.samples > samples, PhaseStatus(Phase.SAMPLING), 2 * SAMPLE_S)
    except GAVE_UP_WORKER as error:
        reason = str(error)  # the run is complete
    if monitor.samples == samples and not run.interrupts():
        run.report(f"no sample: {reason}; mlxhog generate writes one")
