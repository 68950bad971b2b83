"""train(): one run from its configuration to its result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from mlxhog.arena.control import Command
from mlxhog.arena.handover import socket_path
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import RequestServer
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.creation import new_run
from mlxhog.checkpoint.run import RUNNING, Run
from mlxhog.config.config import TrainConfig
from mlxhog.data import clients
from mlxhog.errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    EnvironmentLacks,
    MlxhogError,
    WorkerFailed,
)
from mlxhog.files.durable import disk_errors, replace_file
from mlxhog.files.quantities import Interval
from mlxhog.machine.interrupts import Interrupts
from mlxhog.machine.processes import require_descriptors
from mlxhog.report.metrics import Activity, Doing, Progress, Result
from mlxhog.report.views import Observer
from mlxhog.training import checkpoints, evenness, origin, recording
from mlxhog.training.ending import Deadlines, FinalEvaluation, HeldOutWatch, write_sample
from mlxhog.training.follow import Following
from mlxhog.training.plan import Plan, make_plan
from mlxhog.training.publishing import Publisher
from mlxhog.training.reporting import Reporter, monitor_of, summary
from mlxhog.training.requests import Elastic, Requests
from mlxhog.training.session import Session, Terms

DESCRIPTORS = 40  # files, pipes and sockets of a run, at least
GRACE_S = 3.0  # how long a step in hand may take when a budget of time is over
INTERRUPTED = "finishing the step; again stops at once"


def train(
    config: TrainConfig,
    *,
    observer: Observer[Progress] | None = None,
    whole_time: bool = False,
    run: Run | None = None,
) -> Result:
    """Train a model, lock-free by default, and leave a run directory.

    Args:
        config: the resolved configuration.
        observer: called about twice a second from this thread; it must not block. After an OSError,
            such as a closed pipe, it is not called again.
        whole_time: whether all of a budget of time is for training, so that two runs train equally
            long; else the command ends by then, and trains the less the longer its start takes.
        run: the new run, which is starting and held; by default one is made.

    Returns:
        The result; its `status` is "done", "interrupted", "diverged", or "unsaved" where the last
        checkpoint could not be written.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before anything is started.
        EnvironmentLacks: memory, disk space or a backend is missing.
        WorkerFailed: a worker died more often than allowed; the last checkpoint is named.
    """
    began_ns = monotonic_ns()
    if config.determinism == "replay":
        raise ConfigError("determinism: replay is what another command does: mlxhog replay RUN")
    config = origin.pinned(config)
    with ExitStack() as hold:
        run = run or hold.enter_context(new_run(config))
        require_descriptors(DESCRIPTORS, "a run")
        plan = make_plan(config)
        recording.check(plan)
        if run is None:
            assert plan.resumption is not None
            run = plan.resumption.run
            hold.enter_context(run.lock())
        with ExitStack() as stack:
            return _Training(plan, observer, stack, began_ns, whole_time, run).execute()


class _Training(Session):
    """The run while it lives."""

    def __init__(
        self,
        plan: Plan,
        observer: Observer[Progress] | None,
        stack: ExitStack,
        began_ns: int,
        whole_time: bool,
        run: Run,
    ) -> None:
        """Make the arena of a run that this process holds."""
        self.run = run
        if plan.resumption is not None:
            plan.resumption.check_newest()
        directory = self.run.directory
        self.following = Following.of(plan, directory)
        if self.following is not None:
            assert not plan.alternatives  # they have batches of their own
            plan = replace(plan, batches=self.following.batches)
        self.plan, self.config = plan, plan.config
        super().__init__(
            plan, directory, stack=stack, run_id=self.run.name[:64], fallback=directory
        )
        checkpoints.fill_parameters(plan, self.arena)
        if plan.alternatives:
            self.start = checkpoints.start_of(plan)
            self.leave_open([self._terms(one) for one in plan.alternatives])
        else:
            self.start = checkpoints.begin(plan, self.arena, self.ledger)
            self.begin(self.start.budget, self._terms(plan).step_limit)
        self.publisher = Publisher.of(self, self.config.live_every, stack)
        with disk_errors(f"writing {self.run.architecture}"):
            checkpoint.write_model(self.run.architecture, plan.model, plan.data.tokenizer)
            if plan.division is not None:
                clients.write(plan.division, directory)
        page = None if self.publisher is None else self.publisher.readers_fd
        stack.enter_context(self.arena.serve(socket_path(directory), page))
        self.monitor = monitor_of(plan, self.arena, self.start.budget)
        self.reporter = Reporter(plan, self.run, self.monitor, observer)
        self.watch = HeldOutWatch.of(self.config, plan.resumption, plan.held_out.text)
        self.status = RUNNING
        self.saver = checkpoints.Saver(self, self.reporter, self.start, self.watch, self.publisher)
        self.unsaved: EnvironmentLacks | None = None
        self._measured = False  # to choose the strategy
        self._deadlines = Deadlines(began_ns, self.start.budget.seconds, whole=whole_time)
        self._stack = stack
        self.evaluation = FinalEvaluation(self, plan.held_out, self.monitor, self._deadlines)
        self._signals = Interrupts()
        self._elastic = Elastic(self, plan, self.monitor)
        self._requests = Requests(
            self,
            stack.enter_context(RequestServer(directory)),
            self.monitor,
            self._elastic,
            end=self._signals.end,
            save=self.saver.save_while_training,
        )

    # -- the run from its start to its end -------------------------------------------------------

    def execute(self) -> Result:
        self._write_config()
        self._write_status()
        error: MlxhogError | None = None
        notes = (*self.start.messages, *self.plan.notes, *self.plan.data.notes, self.arena.note)
        for message in (summary(self.plan, self.run), *filter(None, notes)):
            self.reporter.report_once(message)
        self.reporter.drop_lost_metrics(self.start.budget)
        with self._signals:
            try:
                if self.following is not None:
                    if self.plan.resumption is None:
                        self.saver.save()  # from where whatever it takes in is found after a kill
                    self.following.begin(self.arena, self.ledger, self._stack)
                if self.config.determinism == "record":
                    recording.begin(self.plan, self.run.directory, self.arena)
                self.supervisor.start()
                self.until(self.supervisor.ready, Doing(Activity.STARTING))
                if self.plan.alternatives and not self._signals.count:
                    self._choose_strategy()
                if not self._signals.count:
                    self._train()
                    self._rest()
                    self._save_and_evaluate()
                if self.config.sample_every.on and not self._signals.count:
                    write_sample(self, self.monitor, self._deadlines)
                self.status = "interrupted" if self._signals.count else "done"
                if self.unsaved is not None:
                    self.status, error = "unsaved", self.unsaved
            except _StopNow:
                self.status, self.saver.newest = "interrupted", None
            except Diverged as failure:
                self.status, error = "diverged", failure
            except WorkerFailed as failure:
                self.status, error = "failed", self._rescued(failure)
            except MlxhogError as failure:
                self.status, error = "failed", failure
            finally:
                self.supervisor.stop(
                    timeout_s=0.0 if self._signals.count > 1 else self._deadlines.leaving_s()
                )
                self._requests.close()
                self._end_publishing()
            if self.config.determinism == "record":
                recording.end(self.run.directory, self.arena, self.report)
            self.monitor.drain()
            if self.arena.counters.load("start_ns"):
                self.reporter.append_metrics()  # what a run says in the end counts all of it
                self.reporter.write_times()
            result = self._result(error)
            self.reporter.record("ended", text=": ".join(filter(None, [self.status, result.error])))
            try:
                self._write_status(result=result.to_json(), error=result.error)
            except EnvironmentLacks as full:  # the result still reaches the caller
                self.report(f"run.json is not up to date: {full}")
            if error is not None and self.status == "failed":
                raise error
            if isinstance(error, Diverged):
                self.report(str(error))
            return result

    def _write_config(self) -> None:
        with disk_errors(f"writing {self.run.config_path}"):
            replace_file(self.run.config_path, self.plan.stored.to_yaml().encode())

    def _choose_strategy(self) -> None:
        """Measure the workers, choose the strategy that follows, and say why."""
        name, auto = self.plan.strategy.name, True
        if not self.start.budget.is_used_up:
            choice = evenness.measured(self, self.start.budget.seconds)
            if choice is None:
                return  # interrupted
            self.report(str(choice))
            self._measured = isinstance(choice, evenness.Choice)
            name, auto = choice.strategy, not self._measured
        # A run that is resumed measures where this one has not.
        self._take_up(replace(self.plan.with_strategy(name), auto=auto))

    def _take_up(self, plan: Plan) -> None:
        """Go on with one of the strategies that the plan leaves open.

        The arena is filled for it, then workers build it, and are ready when they have.
        """
        names = [one.strategy.name for one in self.plan.alternatives]
        self.plan = self.reporter.plan = self._elastic.plan = plan
        self.config = plan.config
        self.start = self.saver.start = checkpoints.begin(plan, self.arena, self.ledger)
        self.monitor.budget = self.start.budget
        self.decide(names.index(plan.strategy.name))
        for message in (*self.start.messages, *plan.notes):
            self.reporter.report_once(message)
        self._write_config()
        self.until(self.supervisor.ready, Doing(Activity.STARTING))

    def _terms(self, plan: Plan) -> Terms:
        """What workers are to know of a plan."""
        budget, follows = checkpoints.start_of(plan).budget, self.following is not None
        # Steps on text that arrives may have fewer tokens than others.
        limit = budget.steps if follows else budget.step_limit(plan.tokens_per_step)
        return Terms(plan.for_workers(), budget, limit)

    def _train(self) -> None:
        config, counters = self.config, self.arena.counters
        self._limit_time()
        if self.start.budget.is_used_up:
            counters.store("start_ns", monotonic_ns())
            self.monitor.ended_ns, self.monitor.over = counters.load("start_ns"), True
            return
        self.train()
        regular: list[tuple[Interval, Callable[[], None]]] = [
            (config.eval_every, partial(self.watch.ask_for_next, self, self.monitor, self.plan)),
            (config.sample_every, partial(self.ask, "sample")),
            (config.save_every, self.saver.save_now_and_then),
        ]
        last = [(0, 0.0)] * len(regular)
        while not self._signals.count:
            if self._budget_is_used():
                self.monitor.over = True
                break
            self.poll()
            if self.watch.look(self.monitor, self.saver.save_best, self.report):
                self.monitor.over = True
                break
            steps, seconds = counters.load("steps"), self.monitor.seconds()
            for k, (interval, act) in enumerate(regular):
                if self.following is not None and steps == last[k][0]:
                    continue  # it waits for text, and has nothing new to show
                if interval.due(steps=steps - last[k][0], seconds=seconds - last[k][1]):
                    last[k] = (steps, seconds)
                    act()

    def _limit_time(self) -> None:
        """Find out how long training may take of a budget of time, now that workers are up."""
        limit_s = self._deadlines.training_s(
            save_s=checkpoints.save_s(self.plan, self.arena),
            evaluates=self.config.eval_every.on,
            samples=self.config.sample_every.on,
            evaluation_s=self.plan.held_out.estimate_s * (1 + len(self.strategy.copies())),
        )
        if limit_s is not None:
            self.arena.counters.store("limit_ns", int(limit_s * 1e9))
            self.monitor.budget = replace(self.start.budget, seconds=limit_s)
        if self.start.budget.is_used_up:
            return
        self.reporter.start_s = self._deadlines.spent_s()
        if limit_s is not None and (
            warning := self._deadlines.late_start(
                self.reporter.start_s, limit_s, measured=self._measured
            )
        ):
            self.report(warning)

    def _budget_is_used(self) -> bool:
        """Whether a limit is reached, in steps that are over for good (`Strategy.steps_done`)."""
        counters, budget = self.arena.counters, self.monitor.budget
        return (
            self.monitor.no_step_fits(self.strategy.step_s(self.arena))
            or (self.step_limit is not None and self.steps_done() >= self.step_limit)
            or (budget.tokens is not None and counters.load("tokens") >= budget.tokens)
        )

    def _time_is_over(self) -> bool:
        limit_s = self.monitor.budget.seconds
        return limit_s is not None and self.monitor.seconds() >= limit_s

    def _may_ask(self) -> bool:
        """Whether the user has not interrupted, and there are workers to ask for something."""
        return not self._signals.count and self.supervisor.has_workers()

    def _rest(self) -> None:
        """Let workers finish the step in hand; one that takes too long is abandoned.

        Its ticket goes back, and whoever resumes the run computes it again.

        Raises:
            WorkerFailed: training ended before its budget was used.
        """
        self.supervisor.command(Command.REST)
        self.supervisor.dismiss_starting()
        resting, doing = self.supervisor.resting, Doing(Activity.FINISHING)
        self.until(lambda: self._signals.count > 0 or self._time_is_over() or resting(), doing)
        limit_s, late_s = checkpoints.pause_limit_s(self.arena), 0.0
        if self._time_is_over():
            late_s = self._deadlines.step_s(checkpoints.save_s(self.plan, self.arena))
            limit_s = GRACE_S if self.arena.counters.load("steps") else max(GRACE_S, late_s)
        if not self.until(resting, doing, limit_s=limit_s, even_if_interrupted=True):
            if late_s > limit_s:  # one has to be there who evaluates, and writes a sample
                self.until(self.supervisor.one_rests, doing, late_s - limit_s)
            self.abandon()
        self.monitor.ended_ns = self.monitor.ended_ns or monotonic_ns()
        self.settle()
        self._end_publishing()
        if warning := self.monitor.share_warning():
            self.report(warning)
        if not (self._signals.count or self.watch.ended or self._budget_is_used()):
            raise WorkerFailed(
                f"training ended after {self.steps_done()} of {self.step_limit} steps"
            )
        if self.monitor.over and not self.monitor.totals()[0]:
            self.report(
                "no step was finished in the time; give more with --time, or choose a smaller "
                "--model, --batch-size or --seq-len"
            )

    def _save_and_evaluate(self) -> None:
        """Save what the run has come to, while workers evaluate it."""
        evaluates = self.config.eval_every.on and self._may_ask()
        if evaluates:
            self.evaluation.begin()
        try:
            if self.start.budget.is_used_up and self.plan.resumption is not None:
                self.saver.newest = self.plan.resumption.checkpoint.path
            else:
                path = self.saver.save()
                if self._signals.count:
                    self.report(f"saved {path.name}")
        except EnvironmentLacks as error:
            self.unsaved = error  # the model is still evaluated: the numbers are worth having
            self.report(f"no checkpoint: {error}")
        except CheckpointError as error:
            raise Diverged(
                f"{error}; lower --lr or --clip, then --resume from the last checkpoint"
            ) from error
        self.watch.close(self.run, self.saver.newest, self.report)
        if evaluates and not self._signals.count:
            self.evaluation.finish()

    def _rescued(self, failure: WorkerFailed) -> WorkerFailed:
        """Save what a failed run has reached, and add to its message how to go on."""
        self.supervisor.kill()
        if not self.steps_done():
            return failure
        try:
            self.settle()
            self.saver.save()
        except (EnvironmentLacks, CheckpointError) as error:
            return WorkerFailed(f"{failure}; its last steps could not be saved: {error}")
        return WorkerFailed(
            f"{failure}; saved {self.saver.newest}, go on with mlxhog train --resume "
            f"{self.run.directory}"
        )

    def _end_publishing(self) -> None:
        """Leave readers the last weights; nobody may move."""
        if self.publisher is not None:
            self.publisher.end()

    # -- watching --------------------------------------------------------------------------------

    def report(self, message: str) -> None:
        """Show the user a message."""
        self.reporter.report(message)

    def interrupts(self) -> int:
        """Signals so far."""
        return self._signals.count

    def poll(self, doing: Doing | None = None) -> None:
        """Watch workers for a moment, and show how far they are."""
        if self._signals.count > 1:
            raise _StopNow
        super().poll(doing)
        if self._signals.received:
            self.reporter.report_once(INTERRUPTED)
        if self.following is not None:
            for message in self.following.look(training=doing is None):
                self.report(message)
        self.reporter.report_now_and_then(doing)
        self._requests.serve(doing)

    def drain(self) -> None:
        """Take in what workers have recorded."""
        samples = self.monitor.samples
        self.monitor.drain()
        if self.monitor.samples > samples:
            self.reporter.sample = self.run.last_sample()
            self.reporter.record("sample", text=self.reporter.sample)

    def _write_status(self, **more: Any) -> None:
        """Replace run.json."""
        self.reporter.write_status(
            status=self.status,
            checkpoint=self.saver.newest,
            automatic=self.plan.automatic,
            **more,
        )

    def _result(self, error: MlxhogError | None) -> Result:
        return self.reporter.result(
            self.supervisor,
            status=self.status,
            checkpoint=self.saver.newest,
            copies_bits_per_byte=tuple(self.evaluation.copies_bits_per_byte),
            network_bytes=checkpoints.network_bytes(self.plan, self.arena),
            error=error,
        )


class _StopNow(Exception):
    """The user interrupted twice."""
