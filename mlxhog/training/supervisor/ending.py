"""The one way out of a run: workers drain, the state is saved and evaluated, errors are judged.

Whatever ends a run but divergence and a second Ctrl-C saves its state and says how to continue.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import WatchedTime
from mlxhog.base.paths import quoted
from mlxhog.checkpoint.run import RUNNING
from mlxhog.errors import (
    CheckpointError,
    Diverged,
    EnvironmentLacks,
    MlxhogError,
    WorkerFailed,
    message_of,
)
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor.checkpoints import Checkpoints
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.evaluations import Evaluations, write_sample
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.session import Session, StopNow

if TYPE_CHECKING:
    from mlxhog.arena.published import Publisher


def text_of(error: BaseException) -> str:
    """Return the message of an error; one that is not ours begins with its type."""
    own = isinstance(error, MlxhogError)
    return str(error) if own else f"{type(error).__name__}: {message_of(error)}"


@dataclass(eq=False)
class Ending:
    """The end of one run, which has a status from its beginning."""

    session: Session[TextPlan]
    reporter: Reporter
    checkpoints: Checkpoints
    evaluations: Evaluations
    watch: ValidationWatch
    publisher: Publisher | None
    status: str = RUNNING
    is_saved: bool = False
    unsaved: EnvironmentLacks | None = None

    def complete(self) -> None:
        """Let workers finish their step, then save, evaluate and sample."""
        self._drain()
        self._save_and_evaluate()
        session, is_sampled = self.session, self.session.plan.config.sample_every.on
        if is_sampled and not session.interrupts() and session.workers.revive():
            write_sample(session, self.reporter.monitor)

    def _drain(self) -> None:
        """Let workers finish their step; one that takes too long is cancelled.

        Its ticket is returned, and a resume computes it again.
        """
        session, workers, clock = self.session, self.session.workers, self.session.clock
        is_drained, doing = session.is_drained, PhaseStatus(Phase.FINISHING)
        session.command(ControlCommand.DRAIN)
        workers.cancel_starting()
        session.until(lambda: session.interrupts() > 0 or not clock.left_s() or is_drained(), doing)
        limit_s = session.pause_limit_s() if clock.left_s() else session.grace_s()
        if not session.until(is_drained, doing, limit_s=limit_s, even_if_interrupted=True):
            session.cancel_steps()
        clock.stop()
        session.settle()
        if workers.sidecar is not None and workers.pool:  # else what waits is saved
            until = partial(session.until, doing=doing, even_if_interrupted=True)
            workers.sidecar.run_last_round(until)
        if self.publisher is not None:
            self.publisher.end()
        if not (session.interrupts() or self.watch.ended or session.budget_is_used()):
            raise WorkerFailed(
                f"training ended after {session.steps_done()} of {session.step_limit} steps"
            )
        monitor = self.reporter.monitor
        if monitor.over and not monitor.totals()[0]:
            session.report(
                "no step was finished in the time; give more with --time, or choose a smaller "
                "--model, --batch-size or --seq-len"
            )

    def _save_and_evaluate(self) -> None:
        """Save the final state while workers evaluate it."""
        session, plan, checkpoints = self.session, self.session.plan, self.checkpoints
        evaluates = plan.config.eval_every.on
        if not session.interrupts():
            evaluates = evaluates and session.workers.revive()
        evaluates = evaluates and session.workers.has_any()
        if evaluates:
            self.evaluations.begin_last()
        try:
            if session.budget.is_used_up and plan.resumption is not None:
                checkpoints.newest = plan.resumption.checkpoint.path
            else:
                path = checkpoints.save()
                if session.interrupts():
                    session.report(f"saved {path.name}")
            self.is_saved = True
        except EnvironmentLacks as error:
            self.unsaved = error  # the model is still evaluated for its scores
            session.report(f"no checkpoint: {error}")
        except CheckpointError as error:
            way_out = "lower --lr or --clip, then --resume from the last checkpoint"
            raise Diverged(f"{error}; {way_out}") from error
        if evaluates:
            with suppress(StopNow):  # the final state is saved
                self.evaluations.finish()
        saved = checkpoints.newest if self.is_saved else None
        self.watch.close(self.reporter.run, saved, self.reporter.monitor, session.report)

    def judge(self, error: BaseException | None) -> BaseException | None:
        """Set the status by the error that ended the run; returns that of the run, if any.

        The state of the run is saved, unless it has been, or its numbers are not finite, or the
        user wants to stop at once.
        """
        self.status = "interrupted" if self.session.interrupts() else "done"
        match error:
            case None if self.unsaved is not None:
                self.status = "unsaved"
                return self.unsaved
            case None:
                return None
            case StopNow():
                self.status = "interrupted"
                if not self.is_saved:
                    self.checkpoints.newest = None
                return None
            case Diverged():
                self.status = "diverged"
            case _ if not self.is_saved:
                self.status = "failed"
                if self.session.clock.has_started:
                    self._rescue(error)
            case _:
                self.status = "interrupted"  # a resume still evaluates the end
        return error

    def _rescue(self, error: BaseException) -> None:
        """Save the state of a run that an error ends, and say in the error how to continue."""
        session = self.session
        try:
            session.command(ControlCommand.DRAIN)
            watched, limit_s = WatchedTime(), session.grace_s()
            while not session.only_dead_in_step() and watched.look() < limit_s:
                if session.interrupts() > 1:
                    break
                time.sleep(session.poll_s)
            session.cancel_steps()
            session.workers.stop(0.0)
            session.clock.stop()
            session.settle()
            if not session.steps_done():
                return
            path = self.checkpoints.save()
        except Exception as lost:  # the first error is the one to raise
            text = f"its last steps could not be saved: {text_of(lost)}"
        else:
            run = self.reporter.run.directory
            text = f"saved {path}, resume with mlxhog train --resume {quoted(run)}"
        if isinstance(error, MlxhogError):
            error.say_more(text)
        else:
            error.add_note(f"mlxhog: the run is ended by this error; {text}")
