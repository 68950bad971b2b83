"""The held-out evaluations of a run while it trains: the next, the best, the end they bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.errors import EnvironmentLacks
from mlxhog.files.quantities import Interval
from mlxhog.report.monitor import Monitor
from mlxhog.report.views import Tell
from mlxhog.training.resume import Resumption
from mlxhog.training.session import Session

EVALUATING_PART = 0.05  # of the workers' time, for evaluations that are to be every so often


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
        every: how often an evaluation is due.
        bits_per_byte: the best so far; None before the first.
        step: of the run, at which that was.
        since: evaluations after it.
        keeps_best: whether its weights are saved.
        ended: why training has ended before its budget; None where it has not.
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
        """Begin, or go on where a checkpoint was saved, with as much patience as at first."""
        watch = cls(
            config.patience,
            config.stop_at_loss,
            config.eval_every,
            keeps_best=config.keeps_best,
            text=text,
        )
        best = None if resumption is None else resumption.checkpoint.state.get("best")
        if isinstance(best, Mapping) and best.get("text") == text:
            watch.bits_per_byte, watch.step = best["bits_per_byte"], int(best["step"])
        return watch

    def ask_for_next(self, session: Session, monitor: Monitor) -> None:
        """Let a worker evaluate; where that is to be every so often, unless it takes too much time.

        One that is still going on is waited for, unless its worker may have died.
        """
        if self.every.seconds is not None:
            now = (monitor.evaluations, session.supervisor.ends())
            most_s = EVALUATING_PART * session.strategy.workers * monitor.seconds()
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
