"""The best validation score of a run, and the end of a run that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import typed
from mlxhog.checkpoint import checkpoint, manifest
from mlxhog.checkpoint.checkpoint import Checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.checkpoint.run_files import BestScore
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import Tell
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.training.supervisor.monitor import Monitor

if TYPE_CHECKING:
    from mlxhog.training.plan.resume import Resumption


def _best_of(run: Run, resumed: Checkpoint, *, keeps_best: bool) -> dict[str, Any] | None:
    """Return the best score of a run that resumes, as values of `BestScore`.

    With `keeps_best` it is that of the best checkpoint.
    """
    own: dict[str, Any] | None = resumed.state["best"]
    last: dict[str, Any] | None = run.read_status().get("best")
    best = checkpoint.best(run)
    # A checkpoint was saved before its own evaluation.
    if run.ended_with(resumed.path):
        return last or own
    with suppress(CheckpointError):  # it is damaged
        state = {} if best is None else manifest.read(best)["state"]
        n_steps = state.get("used", {}).get("steps")
        if best is not None and manifest.read_order(best) >= manifest.read_order(resumed.path):
            is_last = last is not None and last["step"] == n_steps
            own = last if is_last else state.get("best")
        elif keeps_best and own is not None and n_steps is not None and own["step"] > n_steps:
            own = state.get("best")  # a kill, or a full disk, kept `best` from the newer weights
    return own


class ValidationWatch:
    """The best evaluation during training, and early stopping.

    A checkpoint stores the best, so a resumed run continues the count, with full patience, unless
    it scores another part, or is to keep a best whose weights no checkpoint has. From an older
    checkpoint it continues with the score of that which `best` names, which may have been saved
    since. The best weights are saved right after their evaluation. Lock-free workers continue while
    one evaluates, so the saved model is the evaluated one plus the steps since.
    """

    def __init__(self, config: TrainConfig, resumption: Resumption | None, text: str) -> None:
        self._config, self._text = config, text  # the name of the part that is scored
        self.best: BestScore | None = None
        self.since = self._evaluations = 0  # evaluations after the best
        self.ended: str | None = None  # reason for an end of training before its budget
        if resumption is not None:
            run, keeps_best = resumption.run, config.keeps_best
            best = _best_of(run, resumption.checkpoint, keeps_best=keeps_best)
            has_weights = not keeps_best or checkpoint.best(run) is not None
            if best and best.get("text") == text and has_weights:
                self.best = typed.read(BestScore, best)
        self._earlier = self.best

    def look(self, monitor: Monitor, save: Callable[[], bool], report: Tell) -> bool:
        """Compare a new evaluation, if any; returns whether training is to end.

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
        self.show(monitor)
        if config.stop_at_loss is not None and bits <= config.stop_at_loss:
            self.ended = (
                f"validation text reached {bits:.3f} bits per byte at step {step:,}, and "
                f"stop_at_loss is {config.stop_at_loss:g}"
            )
        elif config.patience is not None and self.since >= config.patience:
            self.ended = (
                f"{self.since} validation evaluation{'s' * (self.since > 1)} without improvement "
                f"(patience) over {best.bits_per_byte:.3f} bits per byte at step {best.step:,}"
            )
        if self.ended is not None:
            report(f"{self.ended}: training ends")
        return self.ended is not None

    def _score(self, bits: float, step: int, monitor: Monitor) -> BestScore:
        nats = tuple(monitor.val_nats)
        return BestScore(bits_per_byte=bits, step=step, text=self._text, nats=nats)

    def forget_earlier(self, monitor: Monitor) -> None:
        """Forget the best of earlier calls, whose weights are replaced."""
        if self.best is self._earlier:
            self.best = None
            monitor.note(best_bits_per_byte=None, best_step=None)

    def show(self, monitor: Monitor) -> None:
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
        is_scored = result.val_step == result.step and last < math.inf
        try:
            if saved is not None and (is_scored and last < before or checkpoint.best(run) is None):
                checkpoint.mark_best(run, saved)
                self.best = self._score(last, result.step, monitor) if is_scored else None
            if (kept := checkpoint.best(run)) and self.best and last < math.inf:
                noise = checkpoint.noise(monitor.val_nats, self.best.nats, result.val_bytes or 1)
                self.best = replace(self.best, noise=noise)
                if rose := checkpoint.is_worse(last, self.best.bits_per_byte, noise):
                    checkpoint.link_model(run, kept)
        except EnvironmentLacks as error:
            report(f"no link leads to the best checkpoint: {error}")
        self.show(monitor)
        if kept and self.best and rose:
            report(
                f"validation loss rose: best validation evaluation {self.best.bits_per_byte:.3f} "
                f"bits per byte at step {self.best.step:,}, the last {last:.3f}; generate, eval, "
                f"serve and convert take the best ({kept.name}), --resume the last"
            )

    def to_json(self) -> dict[str, Any] | None:
        """The values for a checkpoint."""
        return None if self.best is None else asdict(self.best)
