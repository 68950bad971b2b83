"""Held-out evaluations during training: when they are due, the best, and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mlxhog.base.quantities import Interval
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.monitor import Monitor
from mlxhog.report.views import Tell
from mlxhog.training.resume import Resumption
from mlxhog.training.session import WorkerSession

EVALUATING_PART = 0.05  # largest part of the workers' time for evaluations at an interval


@dataclass
class HeldOutWatch:
    """The held-out evaluations of a run during training.

    Only evaluations during training count; all score the same part of the held-out text. A
    checkpoint stores the best, so a resumed run continues the count unless it scores another part.
    The best weights are saved right after their evaluation. Lock-free workers continue while one
    evaluates, so the saved model is the evaluated one plus the steps since.

    Attributes:
        patience: evaluations without a new best that end the run; None for no limit.
        stop_at_loss: bits per byte that end the run; None for no limit.
        every: interval of evaluations.
        bits_per_byte: the best so far; None before the first.
        step: step of the run at the best evaluation.
        since: evaluations after it.
        keeps_best: whether the best weights are saved.
        ended: reason for an end of training before its budget; None otherwise.
        text: name of the part.
    """

    patience: int | None = None
    stop_at_loss: float | None = None
    every: Interval = Interval()
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
        """Begin, or continue from a checkpoint, with full patience."""
        watch = cls(
            config.patience,
            config.stop_at_loss,
            config.eval_every,
            keeps_best=config.keeps_best,
            text=text,
        )
        best = None if resumption is None else resumption.checkpoint.state["best"]
        if isinstance(best, Mapping) and best.get("text") == text:
            watch.bits_per_byte, watch.step = best["bits_per_byte"], int(best["step"])
        return watch

    def ask_for_next(self, session: WorkerSession, monitor: Monitor) -> None:
        """Let a worker evaluate if an evaluation is due and does not take too much time.

        There is no new one while another runs, unless its worker may have died.
        """
        if self.every.seconds is not None:
            now = (monitor.evaluations, session.supervisor.ends())
            most_s = EVALUATING_PART * session.strategy.workers * monitor.seconds()
            if now == self._asked_at or monitor.evaluating_s > most_s:
                return
            self._asked_at = now
        session.ask("eval")

    def look(self, monitor: Monitor, save: Callable[[], bool], report: Tell) -> bool:
        """Take in a new evaluation, if any; returns whether training is to end.

        If the weights of a new best cannot be saved, the best before it stays the best, so the next
        better evaluation is saved.
        """
        bits, step = monitor.evaluation.val_bits_per_byte, monitor.evaluation.val_step
        if monitor.evaluations == self._evaluations or bits is None or step is None:
            return False
        self._evaluations = monitor.evaluations
        before = self.bits_per_byte, self.step
        is_best = self.take(bits, step)
        is_lost = is_best and self.keeps_best and not save()
        self.ended = self.reason_to_stop()
        if is_lost:
            self.bits_per_byte, self.step = before
        if self.ended is not None:
            report(f"{self.ended}: training ends")
        return self.ended is not None

    def close(self, run: Run, saved: Path | None, report: Tell) -> None:
        """Report the best weights: those of the best evaluation, or else the last."""
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
        """The values for a checkpoint."""
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
        """The reason to end the run now; None if it continues."""
        best = self.bits_per_byte
        if best is None:
            return None
        if self.stop_at_loss is not None and best <= self.stop_at_loss:
            return (
                f"held-out text reached {best:.3f} bits per byte at step {self.step:,}, and "
                f"stop_at_loss is {self.stop_at_loss:g}"
            )
        if self.patience is not None and self.since >= self.patience:
            return (
                f"{self.since} held-out evaluation{'s' * (self.since > 1)} without a new best "
                f"(patience), which was {best:.3f} bits per byte at step {self.step:,}"
            )
        return None
