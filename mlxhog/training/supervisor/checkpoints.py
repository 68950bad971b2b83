"""Checkpoints of a run: at its end, while it trains, and of its best evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import Refused
from mlxhog.checkpoint import checkpoint
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor.arena_state import dump
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.evaluations import EVALUATING_SHARE
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.session import Session

if TYPE_CHECKING:
    from mlxhog.arena.published import Publisher


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of a run, while it trains and at its end."""

    session: Session[TextPlan]
    reporter: Reporter
    watch: ValidationWatch
    publisher: Publisher | None
    find_folder: Callable[[], None]
    newest: Path | None = None
    best_s: float = 0.0  # that saves of the best took
    has_best: bool = False  # whether this call has saved a best

    def save(self) -> Path:
        """Save a checkpoint, after the strategy has settled the arena.

        No process may write parameters meanwhile; workers may read them.

        Raises:
            EnvironmentLacks: the disk is full; the previous checkpoint is whole.
        """
        self.find_folder()
        session, plan, arena = self.session, self.session.plan, self.session.arena
        monitor = self.reporter.monitor
        optimizer, values = dump(plan, arena, session.ledger, session.budget, monitor)
        if replaces_best := self._replaces_best(values["version"]):
            self.watch.forget_earlier(monitor)
        self.newest = checkpoint.save(
            self.reporter.run,
            step=values["version"],
            params={name: arena.param(name) for name in arena.layout.slots},
            model=plan.model,
            base=plan.base,
            optimizer=optimizer,
            state={
                **values,
                "network_bytes": session.network_bytes(),
                "best": self.watch.to_json(),
                "ended": self.watch.ended,
            },
            tokenizer=plan.data.tokenizer,
            keep_last=plan.config.keep_last,
            replaces_best=replaces_best,
            note=self.reporter.report_once,
        )
        self.reporter.record("checkpoint", path=self.newest)
        return self.newest

    def _replaces_best(self, step: int) -> bool:
        """Whether a checkpoint of this step replaces the best, which has other weights.

        It does where a run resumes from an older checkpoint and reaches the step of the best.
        """
        earlier, run = self.session.plan.resumption, self.reporter.run
        if earlier is None or self.has_best or step <= earlier.checkpoint.step:
            return False
        return checkpoint.best(run) == run.checkpoints / f"step-{step:08d}"

    def save_while_training(self) -> Path:
        """Pause every worker after its step, save, and continue; returns the checkpoint.

        Raises:
            Refused: the workers did not pause, or the checkpoint cannot be written (training
                continues); or the run is ending.
        """
        session = self.session
        with session.paused() as is_quiesced:
            if not is_quiesced and (session.interrupts() or not session.clock.left_s()):
                raise Refused("the run is ending and saves a checkpoint then")
            if not is_quiesced:
                limit_s = session.pause_limit_s()
                raise Refused(f"workers did not finish their step and pause within {limit_s:.0f} s")
            session.settle()
            if self.publisher is not None:  # readers get the checkpoint's weights
                self.publisher.publish_quiesced()
            try:
                return self.save()
            except (EnvironmentLacks, CheckpointError) as error:
                raise Refused(str(error), error.exit_code) from error

    def save_now_and_then(self, what: str = "checkpoint") -> Path | None:
        """Save while training; a refusal is reported, and training continues."""
        try:
            return self.save_while_training()
        except Refused as error:
            if not self.session.interrupts():
                self.session.report(f"no {what}: {error}; training continues")
            return None

    def save_best(self) -> bool:
        """Save while training, and let checkpoints/best name the checkpoint; whether it does.

        Beside evaluations at an interval of time, saves take at most as much time as those.
        """
        limit_s = EVALUATING_SHARE * self.session.clock.seconds()
        if self.session.plan.config.eval_every.seconds is not None and self.best_s > limit_s:
            return False
        began_ns = monotonic_ns()
        path = self.save_now_and_then("best checkpoint")
        self.best_s += (monotonic_ns() - began_ns) / 1e9
        if path is None:
            return False
        try:
            checkpoint.mark_best(self.reporter.run, path)
        except EnvironmentLacks as error:
            self.session.report(f"no best checkpoint: {error}; training continues")
            return False
        self.has_best = True
        return True
