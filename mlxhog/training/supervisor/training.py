"""train(): one run from its configuration to its result.

Whatever ends a run but divergence and a second Ctrl-C saves its state, writes its status, and says
how to continue (`Training.__exit__`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.published import WORDS, Publisher
from mlxhog.arena.requests import socket_path
from mlxhog.base import darwin, disk
from mlxhog.base.interrupts import Interrupts
from mlxhog.base.processes import require_descriptors
from mlxhog.base.quantities import Interval
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import RUNNING, STARTING, Run, new_run
from mlxhog.config.config import TrainConfig
from mlxhog.display import card
from mlxhog.display.views import Observer
from mlxhog.errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    EnvironmentLacks,
    MlxhogError,
    WorkerFailed,
    message_of,
)
from mlxhog.optim.schedules import Falling
from mlxhog.progress import Phase, PhaseStatus, Progress, Result
from mlxhog.training.plan import preview
from mlxhog.training.plan import resume as origin
from mlxhog.training.plan.batch_size import advice
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.sizes import overfitting
from mlxhog.training.plan.strategy_rule import rounds_before
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor import arena_state, run_folder
from mlxhog.training.supervisor.change_strategy import Changes
from mlxhog.training.supervisor.checkpoints import Checkpoints
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.evaluations import Evaluations, write_sample
from mlxhog.training.supervisor.reporting import Reporter, summary
from mlxhog.training.supervisor.run_requests import Requests
from mlxhog.training.supervisor.session import Session

if TYPE_CHECKING:
    from mlxhog.training.supervisor.follow import Follower

DESCRIPTORS = 48  # files, pipes and sockets of a run, at least
COUNTING_S = 1.0  # how long the end of a short run waits for the score of counts
LEAVING_S = 5.0  # limit for workers to leave
FOLDER_S = 0.5  # between two looks whether the run's folder was renamed or removed
INTERRUPTED = "finishing the step; again stops at once"


def train(
    config: TrainConfig, *, observer: Observer[Progress] | None = None, run: Run | None = None
) -> Result:
    """Train in a new run, or in one that the caller locks; raises as `mlxhog.train`."""
    began_ns = monotonic_ns()
    if config.determinism == "replay":
        raise ConfigError("determinism: to replay a run use mlxhog replay RUN")
    config = origin.located(config)
    with ExitStack() as stack:
        if config.resume is not None:
            run, _ = checkpoint.resumable(config.resume, Path(config.runs_dir))
            stack.enter_context(run.lock())
        run = run or stack.enter_context(new_run(config))
        assert run is not None, "only a resumed run has no folder to create"
        require_descriptors(DESCRIPTORS, "a run")
        plan = make_plan(config, progress=observer is not None)
        with ExitStack() as parts:
            with Training(plan, observer, parts, began_ns, run) as training:
                training.start()
                training.train()
                training.end()
            return training.result


class _StopNow(Exception):
    """The user interrupted twice."""


def _text_of(error: BaseException) -> str:
    own = isinstance(error, MlxhogError)
    return str(error) if own else f"{type(error).__name__}: {message_of(error)}"


class Training(Session):
    """One call of `train`: a run that a user watches, interrupts and sends requests to.

    In a `with` block it starts, trains and ends. The end of the block, also by an error, stops the
    workers and reports the result.
    """

    plan: TextPlan
    result: Result  # after the block

    def __init__(
        self,
        plan: TextPlan,
        observer: Observer[Progress] | None,
        stack: ExitStack,
        began_ns: int,
        run: Run,
    ) -> None:
        self._follower: Follower | None = None
        folder, earlier = run.directory, plan.resumption
        if (config := plan.config).follow is not None:
            from mlxhog.training.supervisor.follow import follower_of

            self._follower = follower_of(config, folder, plan.data.tokenizer)
            assert plan.other is None  # it has batches of its own
            plan = replace(plan, batches=self._follower.batches(plan.batches))
        super().__init__(plan, folder, stack=stack, fallback=folder)
        self.run, self.signals = run, Interrupts()
        self.changes: Changes | None = None  # of the strategy; None for one that stays
        self._notes = [*plan.notes, *plan.data.notes, self.arena.note, disk.note(folder)]
        self._notes.append(overfitting(plan, preview.epochs(plan)) or "")
        arena_state.load(plan, self.arena, self.ledger, self._notes.append)
        self.sent_before = (0, 0 if earlier is None else int(earlier.state["network_bytes"]))
        self.reporter = Reporter(plan, run, self.arena, observer)
        # After signals are no longer counted, so that one can end a tracker's wait for a network.
        stack.callback(lambda: self.reporter.close_trackers(failed=self._status == "failed"))
        self.monitor = self.reporter.monitor
        if self.sidecar is not None:
            self.monitor.machines = self.sidecar.members.reports
        # Steps on text that arrives may have fewer tokens than others.
        limit = plan.budget.step_limit(plan.strategy.tokens_per_step)
        self.begin(plan.budget.steps if self._follower else limit, rounds_before(plan))
        run_folder.write_model(run, plan)
        self._folder = run_folder.FolderFollower(run, lambda: self.plan, stack)
        server = stack.enter_context(self.arena.serve(socket_path(folder)))
        self._publisher: Publisher | None = None
        if WORDS in self.arena.layout.segments:
            self._publisher = Publisher(
                self.arena,
                server,
                lambda arena, out: self.strategy.load(arena, out, training=True),  # the present one
                plan.config.live_every,
            )
            stack.callback(self._publisher.end)
        self._watch = ValidationWatch(plan.config, earlier, plan.validation.text)
        self._watch.mark(self.monitor)
        if plan.config.follow is None:
            self.monitor.epoch = lambda: self.ledger.count_done() / self.ledger.n
        self.checkpoints = Checkpoints(self, self.reporter, self._watch, self._publisher)
        self._stack, self._began_ns, self._status, self._is_saved = stack, began_ns, RUNNING, False
        self._unsaved: EnvironmentLacks | None = None
        if plan.config.keep_awake:
            self._notes.append(stack.enter_context(darwin.awake()))
        self._evaluations = Evaluations(self)
        self._requests = Requests(self, server, self.checkpoints, lambda: self.changes)

    # -- the run from its start to its end -------------------------------------------------------

    def __enter__(self) -> Self:
        """From now on signals are counted, and every error ends the run as `__exit__` does."""
        self._stack.enter_context(self.signals)
        return self

    def start(self) -> None:
        """Show how the run begins, start the workers, and wait until all are ready."""
        self.write_config()
        self._write_status()
        self.plan.data.text.write(self.run.directory)  # after the record of what is new in it
        self.reporter.open_trackers()
        for message in (summary(self.plan, self.run), *filter(None, self._notes)):
            self.reporter.report_once(message)
        self.reporter.drop_lost_metrics()
        if self._follower is not None:
            if self.plan.resumption is None:
                self.checkpoints.save()  # so that text taken in from now on survives a kill
            self._follower.give(self.arena, self.ledger, training=False)
            self._stack.enter_context(self._follower)
        if self.plan.config.determinism == "record":
            from mlxhog.training.supervisor import replay

            replay.begin_record(self.plan, self.run.directory, self.arena)
        self.spawn()
        self.until(self.ready, PhaseStatus(Phase.STARTING))

    def train(self) -> None:
        """Train until the budget is used up, the user interrupts, or patience ends."""
        config, counters, monitor = self.plan.config, self.arena.counters, self.monitor
        if self.signals.count:
            return
        if self.budget.is_used_up:
            self.clock.start()
            self.clock.stop()
            monitor.over = True
            return
        schedule = config.schedule
        if self.plan.other and not (isinstance(schedule, Falling) and schedule.epochs):
            self.changes = Changes(self, self.reporter)  # that schedule counts equal steps
        if config.init_from is not None and self.plan.resumption is None and config.eval_every.on:
            self._evaluations.score_base()
        monitor.start_s = (self.begin_training() - self._began_ns) / 1e9
        if config.eval_every.on and config.follow is None:
            monitor.find_ngram_baseline(self.plan.data, self.plan.validation.asked_bytes)
        regular: list[tuple[Interval, Callable[[], object]]] = [
            (config.eval_every, self._evaluations.ask_for_next),
            (config.sample_every, partial(self.ask, "sample")),
            (config.save_every, self.checkpoints.save_now_and_then),
        ]
        last = [(0, 0.0)] * len(regular)
        while not self.signals.count:
            if self.budget_is_used():
                break
            self.poll()
            if self.changes is not None:
                self.changes.look()
            if self._watch.look(monitor, self.checkpoints.save_best, self.report):
                break
            steps, seconds = counters.load("steps"), self.clock.seconds()
            for k, (interval, act) in enumerate(regular):
                if self._follower is not None and steps == last[k][0]:
                    continue  # it waits for text, and has nothing new to show
                if interval.due(steps=steps - last[k][0], seconds=seconds - last[k][1]):
                    last[k] = (steps, seconds)
                    act()
        else:
            if self.signals.received:  # before anything that the end reports
                self.reporter.report_once(INTERRUPTED)
            return
        monitor.over = True

    def end(self) -> None:
        """Let workers finish their step, then save, evaluate and sample, if the run has trained."""
        if not self.clock.has_started:
            return
        self._rest()
        self._save_and_evaluate()
        if self.plan.config.sample_every.on and not self.signals.count and self.revive():
            write_sample(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Save, stop the workers and report; returns whether the result tells of the error."""
        with ExitStack() as parts:  # all end, whatever one of them raises
            if self._publisher is not None:
                parts.callback(self._publisher.end)
            parts.callback(self._requests.close)
            parts.callback(lambda: self.stop(0.0 if self.signals.count > 1 else LEAVING_S))
            failure = self._judge(error)
        plan, reporter = self.plan, self.reporter
        if not self.signals.count:
            self.monitor.await_ngram_baseline(COUNTING_S)
        if plan.config.determinism == "record":
            from mlxhog.training.supervisor import replay

            replay.end_record(self.run.directory, self.arena, self.report)
        self.monitor.drain()
        if self.clock.has_started:
            reporter.append_metrics()  # the last line counts the whole run
            reporter.write_times()
        elif self._status == "failed" and plan.resumption is None:
            if not isinstance(error, WorkerFailed):  # its message names a log
                self.run.write_status({"status": STARTING})  # `new_run` removes it
                return False
        newest = None
        with suppress(CheckpointError):
            newest = str(checkpoint.latest(self.run))
        self.result = result = reporter.result(
            status=self._status,
            restarts=self.restarts,
            torn=self.torn,
            checkpoint=None if (path := self.checkpoints.newest) is None else str(path),
            newest_checkpoint=newest,
            error=None if failure is None else _text_of(failure),
            copies_bits_per_byte=tuple(self._evaluations.copies_bits_per_byte),
            network_bytes=self.network_bytes(),
        )
        reporter.record("ended", text=": ".join(filter(None, [result.status, result.error])))
        try:  # a full disk does not keep the result from the caller
            self._write_status(result=result.to_json(), error=result.error)
            card.write(self.run, plan.model)
        except MlxhogError as lacking:
            self.report(f"run.json or the model card is not up to date: {lacking}")
        if isinstance(failure, Diverged):
            self.report(str(failure))
        if self._status == "done" and (text := advice(plan, result.to_json())):
            self.report(text)
        return error is None or isinstance(error, _StopNow | Diverged)

    def _judge(self, error: BaseException | None) -> BaseException | None:
        """Set the status by the error that ended the block; returns that of the run, if any.

        The state of the run is saved, unless it has been, or its numbers are not finite, or the
        user wants to stop at once.
        """
        self._status = "interrupted" if self.signals.count else "done"
        match error:
            case None if self._unsaved is not None:
                self._status = "unsaved"
                return self._unsaved
            case None:
                return None
            case _StopNow():
                self._status = "interrupted"
                if not self._is_saved:
                    self.checkpoints.newest = None
                return None
            case Diverged():
                self._status = "diverged"
            case _ if not self._is_saved:
                self._status = "failed"
                if self.clock.has_started:
                    self._rescue(error)
            case _:
                self._status = "interrupted"  # a resume still evaluates the end
        return error

    def _rest(self) -> None:
        """Let workers finish their step; one that takes too long is cancelled.

        Its ticket is returned, and a resume computes it again.
        """
        self.command(ControlCommand.DRAIN)
        self.cancel_starting()
        is_drained, clock, doing = self.is_drained, self.clock, PhaseStatus(Phase.FINISHING)
        self.until(lambda: self.signals.count > 0 or not clock.left_s() or is_drained(), doing)
        limit_s = self.pause_limit_s() if clock.left_s() else self.grace_s()
        if not self.until(is_drained, doing, limit_s=limit_s, even_if_interrupted=True):
            self.cancel_steps()
        clock.stop()
        self.settle()
        if self.sidecar is not None and self.pool:  # else all ended within a step: it is saved
            self.sidecar.run_last_round(partial(self.until, doing=doing, even_if_interrupted=True))
        if self._publisher is not None:
            self._publisher.end()
        if not (self.signals.count or self._watch.ended or self.budget_is_used()):
            raise WorkerFailed(
                f"training ended after {self.steps_done()} of {self.step_limit} steps"
            )
        if self.monitor.over and not self.monitor.totals()[0]:
            self.report(
                "no step was finished in the time; give more with --time, or choose a smaller "
                "--model, --batch-size or --seq-len"
            )

    def _save_and_evaluate(self) -> None:
        """Save the final state while workers evaluate it."""
        evaluates = self.plan.config.eval_every.on
        if not self.signals.count:
            evaluates = evaluates and self.revive()
        evaluates = evaluates and self.has_workers()
        if evaluates:
            self._evaluations.begin_last()
        try:
            if self.budget.is_used_up and self.plan.resumption is not None:
                self.checkpoints.newest = self.plan.resumption.checkpoint.path
            else:
                path = self.checkpoints.save()
                if self.signals.count:
                    self.report(f"saved {path.name}")
            self._is_saved = True
        except EnvironmentLacks as error:
            self._unsaved = error  # the model is still evaluated for its scores
            self.report(f"no checkpoint: {error}")
        except CheckpointError as error:
            way_out = "lower --lr or --clip, then --resume from the last checkpoint"
            raise Diverged(f"{error}; {way_out}") from error
        if evaluates:
            with suppress(_StopNow):  # the final state is saved
                self._evaluations.finish()
        saved = self.checkpoints.newest if self._is_saved else None
        self._watch.close(self.run, saved, self.monitor, self.report)

    def _rescue(self, error: BaseException) -> None:
        """Save the state of a run that an error ends, and say in the error how to continue."""
        try:
            self.command(ControlCommand.DRAIN)
            watched, limit_s = WatchedTime(), self.grace_s()
            while not self.only_dead_in_step() and watched.look() < limit_s:
                if self.signals.count > 1:
                    break
                time.sleep(self.poll_s)
            self.cancel_steps()
            self.stop(0.0)
            self.clock.stop()
            self.settle()
            if not self.steps_done():
                return
            path = self.checkpoints.save()
        except Exception as lost:  # the first error is the one to raise
            text = f"its last steps could not be saved: {_text_of(lost)}"
        else:
            text = f"saved {path}, resume with mlxhog train --resume {self.run.directory}"
        if isinstance(error, MlxhogError):
            error.say_more(text)
        else:
            error.add_note(f"mlxhog: the run is ended by this error; {text}")

    # -- what its parts decide -------------------------------------------------------------------

    def change_strategy(self, new: TextPlan, tell: Callable[[], None]) -> bool:
        """Continue by another plan if all workers hold still, and tell of it; whether they do."""
        doing = PhaseStatus(Phase.CHANGING)
        with self.paused(Phase.CHANGING) as still:
            # Rounds take tickets by number: one that a dead worker left below others comes first.
            if not still or (new.strategy.numbered and self.ledger.position()["done"]):
                return False
            self.until(self.are_parked, doing, even_if_interrupted=True)
            self.settle()
            done, tokens = self.steps_done(), self.arena.counters.load("tokens")
            self.sent_before = done, self.network_bytes()
            arena_state.change(self.plan, new, self.arena)
            self.continue_by(new, new.budget.continuing(self.budget, done), done, tokens)
            self.reporter.plan, self.monitor.budget = new, self.budget
            self.monitor.note(strategy=new.strategy.name)
            with suppress(EnvironmentLacks):  # a full disk is reported for the metrics
                self.write_config()
            tell()
            self.until(self.ready, doing, even_if_interrupted=True)
        return True

    def interrupt(self) -> None:
        """Let the run finish its step, save and end, as one Ctrl-C does."""
        self.signals.end()

    # -- what others see -------------------------------------------------------------------------

    def network_bytes(self) -> int:
        """Bytes that the run would have sent; see `Strategy.network_bytes`."""
        steps, n_bytes = self.sent_before
        steps = self.arena.counters.load("steps") - steps
        return n_bytes + self.strategy.network_bytes(self.arena, steps)

    def report(self, message: str) -> None:
        """Show the user a message."""
        self.reporter.report(message)

    def interrupts(self) -> int:
        """Number of signals so far."""
        return self.signals.count

    def poll(self, doing: PhaseStatus | None = None) -> None:
        """Watch workers for a moment, show the progress, and answer requests."""
        if self.signals.count > 1:
            raise _StopNow
        super().poll(doing)
        if self.signals.received:
            self.reporter.report_once(INTERRUPTED)
        if self.reporter.is_due("folder", FOLDER_S):
            with suppress(EnvironmentLacks):  # the next save says why
                self.find_folder()
        if self._follower is not None:
            for message in self._follower.give(self.arena, self.ledger, training=doing is None):
                self.report(message)
        self.reporter.report_now_and_then(doing)
        self._requests.serve(doing)

    def drain(self) -> None:
        """Read the records of workers."""
        samples = self.monitor.samples
        self.monitor.drain()
        if self.monitor.samples > samples:
            self.reporter.sample = self.run.last_sample()
            self.reporter.record("sample", text=self.reporter.sample)

    def find_folder(self) -> None:
        """Continue in the run's folder where it is now; an EnvironmentLacks if there is none."""
        if (moved := self._folder.find()) is not None:
            self.run, message = moved
            self.reporter.run, self.run_dir = self.run, self.run.directory
            self.report(message)
            self._write_status()

    def write_config(self) -> None:
        """Replace the options in the run's folder."""
        run_folder.write_options(self.run, self.plan, self.reporter.commands)

    def _write_status(self, **more: Any) -> None:
        sidecar = self.sidecar
        self.reporter.write_status(
            batch_size=None if self.plan.batch is None else self.plan.batch.to_json(),
            status=self._status,
            checkpoint=self.checkpoints.newest,
            notices=list(self.notices),
            best=self._watch.to_json(),
            **({} if sidecar is None else {"cluster": sidecar.report()}),
            **more,
        )
