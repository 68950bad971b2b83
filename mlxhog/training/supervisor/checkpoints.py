"""Checkpoints of a run: at its end, while it trains, and of its best evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import Refused
from mlxhog.checkpoint import checkpoint
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.training.supervisor.arena_state import dump
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.evaluations import EVALUATING_PART
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.run_handle import RunHandle

if TYPE_CHECKING:
    from mlxhog.arena.published import Publisher


class Checkpoints:
    """The checkpoints of a run, while it trains and at its end."""

    def __init__(
        self,
        run: RunHandle,
        reporter: Reporter,
        watch: ValidationWatch,
        publisher: Publisher | None,
    ) -> None:
        self._run, self._reporter = run, reporter
        self._watch, self._publisher = watch, publisher
        self.newest: Path | None = None
        self._best_s = 0.0  # that saves of the best took

    def save(self) -> Path:
        """Save a checkpoint, after the strategy has settled the arena.

        No process may write parameters meanwhile; workers may read them.

        Raises:
            EnvironmentLacks: the disk is full; the previous checkpoint is whole.
        """
        run, plan, arena = self._run, self._run.plan, self._run.arena
        run.find_folder()
        optimizer, values = dump(plan, arena, run.ledger, run.budget, run.monitor)
        self.newest = checkpoint.save(
            run.run,
            step=values["version"],
            params={name: arena.param(name) for name in arena.layout.slots},
            model_config=plan.model.to_dict(),
            optimizer=optimizer,
            state={
                **values,
                "network_bytes": run.network_bytes(),
                "best": self._watch.to_json(),
                "ended": self._watch.ended,
            },
            tokenizer=plan.data.tokenizer,
            keep_last=plan.config.keep_last,
            note=self._reporter.report_once,
        )
        self._reporter.record("checkpoint", path=self.newest)
        return self.newest

    def save_while_training(self) -> Path:
        """Pause every worker after its step, save, and continue; returns the checkpoint.

        Raises:
            Refused: the workers did not pause, or the checkpoint cannot be written (training
                continues); or the run is ending.
        """
        run = self._run
        with run.paused() as still:
            if not still and (run.interrupts() or not run.clock.left_s()):
                raise Refused("the run is ending and saves a checkpoint then")
            if not still:
                limit_s = run.pause_limit_s()
                raise Refused(f"workers did not finish their step and pause within {limit_s:.0f} s")
            run.settle()
            if self._publisher is not None:  # readers get the checkpoint's weights
                self._publisher.publish_quiesced()
            try:
                return self.save()
            except (EnvironmentLacks, CheckpointError) as error:
                raise Refused(str(error), error.exit_code) from error

    def save_now_and_then(self, what: str = "checkpoint") -> Path | None:
        """Save while training; a refusal is reported, and training continues."""
        try:
            return self.save_while_training()
        except Refused as error:
            if not self._run.interrupts():
                self._run.report(f"no {what}: {error}; training continues")
            return None

    def save_best(self) -> bool:
        """Save while training, and let checkpoints/best name the checkpoint; whether it does.

        Beside evaluations at an interval of time, saves take at most as much time as those.
        """
        limit_s = EVALUATING_PART * self._run.clock.seconds()
        if self._run.plan.config.eval_every.seconds is not None and self._best_s > limit_s:
            return False
        began_ns = monotonic_ns()
        path = self.save_now_and_then("best checkpoint")
        self._best_s += (monotonic_ns() - began_ns) / 1e9
        if path is None:
            return False
        try:
            checkpoint.mark_best(self._run.run, path)
        except EnvironmentLacks as error:
            self._run.report(f"no best checkpoint: {error}; training continues")
            return False
        return True
