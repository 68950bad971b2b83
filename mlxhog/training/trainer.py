"""train(): one run from its configuration to its result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import socket_path
from mlxhog.base import darwin
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.processes import require_descriptors
from mlxhog.base.quantities import Interval
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.creation import new_run
from mlxhog.checkpoint.run import RUNNING, STARTING, Run
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
from mlxhog.report import card
from mlxhog.report.metrics import Activity, Doing, Progress, Result
from mlxhog.report.views import Observer
from mlxhog.training import batch_size, checkpoints, choose_strategy, init_from, recording
from mlxhog.training.batch_size import BatchChoice
from mlxhog.training.change_strategy import Changes
from mlxhog.training.deadlines import SAMPLING_S, Deadlines
from mlxhog.training.final_evaluation import GAVE_UP_WORKER, FinalEvaluation, write_sample
from mlxhog.training.follow import Following
from mlxhog.training.held_out_watch import HeldOutWatch
from mlxhog.training.plan import Plan, make_plan
from mlxhog.training.publishing import Publisher
from mlxhog.training.reporting import summary
from mlxhog.training.requests import Elastic, Requests
from mlxhog.training.run_session import RunSession, StopNow
from mlxhog.training.session import StrategyTerms

DESCRIPTORS = 40  # files, pipes and sockets of a run, at least
COUNTING_S = 1.0  # how long the end of a short run waits for the score of counts
ROUND_S = 5.0  # limit of the last round, beyond the time until the other machines play one
GRACE_S = 3.0  # limit of the current step when a budget of time is over


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
            long; else the whole command, its start included, keeps the budget.
        run: the new run, created and locked by the caller; by default one is created.

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
        raise ConfigError("determinism: to replay a run use mlxhog replay RUN")
    config = init_from.located(config)
    with ExitStack() as hold:
        run = run or hold.enter_context(new_run(config))
        require_descriptors(DESCRIPTORS, "a run")
        progress = observer is not None
        plan_of = partial(make_plan, progress=progress)
        plan, batch = batch_size.planned(config, plan_of, progress=progress)
        if run is None:
            assert plan.resumption is not None
            run = plan.resumption.run
            hold.enter_context(run.lock())
        with ExitStack() as stack:
            return _Training(plan, observer, stack, began_ns, whole_time, run, batch).execute()


class _Training:
    """One call of `train`, phase by phase; its parts share the session but do not depend on it."""

    def __init__(
        self,
        plan: Plan,
        observer: Observer[Progress] | None,
        stack: ExitStack,
        began_ns: int,
        whole_time: bool,
        run: Run,
        batch: BatchChoice | None,
    ) -> None:
        """Create the arena of a run that this process has locked."""
        if plan.resumption is not None:
            plan.resumption.check_newest()
        self.run, directory = run, run.directory
        self._batch = batch_size.record_of(batch, plan)
        self._following = Following.of(plan, directory)
        if self._following is not None:
            assert not plan.alternatives  # they have batches of their own
            plan = replace(plan, batches=self._following.batches)
        self.plan = plan
        self._session = session = RunSession(
            plan, run, following=self._following, observer=observer, stack=stack
        )
        self._arena, self._supervisor = session.arena, session.supervisor
        self._monitor, self._reporter = session.monitor, session.reporter
        self._signals = session.signals
        checkpoints.fill_parameters(plan, session.arena)
        if plan.alternatives:
            self._start = checkpoints.start_of(plan)
            session.leave_open([self._terms(one) for one in plan.alternatives])
        else:
            self._start = checkpoints.begin(plan, session.arena, session.ledger)
            session.begin(self._start.budget, self._terms(plan).step_limit)
        with disk_errors(f"writing {run.architecture}"):
            checkpoint.write_model(run.architecture, plan.model, plan.data.tokenizer)
            if plan.division is not None:
                clients.write(plan.division, directory)
        server = stack.enter_context(session.arena.serve(socket_path(directory)))
        self._publisher = Publisher.of(session, server, plan.config.live_every, stack)
        self._watch = HeldOutWatch.of(plan.config, plan.resumption, plan.held_out.text)
        self._status = RUNNING
        self._saver = checkpoints.Saver(
            session, self._reporter, self._start, self._watch, self._publisher
        )
        self._unsaved: EnvironmentLacks | None = None
        self._measured = False  # to choose the strategy
        self._changes: Changes | None = None
        self._deadlines = Deadlines(began_ns, self._start.budget.seconds, whole=whole_time)
        self._stack = stack
        self._sleepy = stack.enter_context(darwin.awake()) if plan.config.keep_awake else ""
        self._evaluation = FinalEvaluation(
            session,
            plan.held_out,
            self._monitor,
            self._deadlines,
            sample_s=SAMPLING_S * plan.config.sample_every.on,
        )
        self._elastic = Elastic(session, plan, self._monitor)
        session.requests = self._requests = Requests(
            session,
            server,
            self._monitor,
            self._elastic,
            end=session.signals.end,
            save=self._saver.save_while_training,
        )

    # -- the run from its start to its end -------------------------------------------------------

    def execute(self) -> Result:
        self._write_config()
        self._write_status()
        error: MlxhogError | None = None
        notes = (
            *self._start.messages,
            *self.plan.notes,
            *self.plan.data.notes,
            self._arena.note,
            self._sleepy,
        )
        for message in (summary(self.plan, self.run), *filter(None, notes)):
            self._reporter.report_once(message)
        self._reporter.drop_lost_metrics(self._start.budget)
        with self._signals:
            try:
                if self._following is not None:
                    if self.plan.resumption is None:
                        self._saver.save()  # so that text taken in from now on survives a kill
                    self._following.begin(self._arena, self._session.ledger, self._stack)
                if self.plan.config.determinism == "record":
                    recording.begin(self.plan, self.run.directory, self._arena)
                self._supervisor.start()
                self._session.until(self._supervisor.ready, Doing(Activity.STARTING))
                if self.plan.alternatives and not self._signals.count:
                    self._choose_strategy()
                if not self._signals.count:
                    self._train()
                    self._rest()
                    self._save_and_evaluate()
                if self.plan.config.sample_every.on and not self._signals.count:
                    write_sample(self._session, self._monitor, self._deadlines)
                self._status = "interrupted" if self._signals.count else "done"
                if self._unsaved is not None:
                    self._status, error = "unsaved", self._unsaved
            except StopNow:
                self._status, self._saver.newest = "interrupted", None
            except Diverged as failure:
                self._status, error = "diverged", failure
            except WorkerFailed as failure:
                self._status, error = "failed", self._rescued(failure)
            except MlxhogError as failure:
                self._status, error = "failed", failure
            finally:
                self._supervisor.stop(
                    timeout_s=0.0 if self._signals.count > 1 else self._deadlines.leaving_s()
                )
                self._requests.close()
                self._end_publishing()
            if not self._signals.count:
                self._monitor.await_counts(COUNTING_S)
            if self.plan.config.determinism == "record":
                recording.end(self.run.directory, self._arena, self._session.report)
            self._monitor.drain()
            if self._arena.counters.load("start_ns"):
                self._reporter.append_metrics()  # the last line counts the whole run
                self._reporter.write_times()
            if (
                isinstance(error, ConfigError | EnvironmentLacks)
                and self._status == "failed"
                and self.plan.resumption is None
                and not self._arena.counters.load("start_ns")
            ):
                self.run.write_status({"status": STARTING})  # `creation` removes the run
                raise error
            result = self._result(error)
            self._reporter.record(
                "ended", text=": ".join(filter(None, [self._status, result.error]))
            )
            try:
                self._write_status(result=result.to_json(), error=result.error)
            except EnvironmentLacks as full:  # the result still reaches the caller
                self._session.report(f"run.json is not up to date: {full}")
            try:
                card.write(self.run, self.plan.model)
            except MlxhogError as lacking:
                self._session.report(f"no model card: {lacking}")
            if error is not None and self._status == "failed":
                raise error
            if isinstance(error, Diverged):
                self._session.report(str(error))
            return result

    def _write_config(self) -> None:
        self.run.check_place()
        with disk_errors(f"writing {self.run.config_path}"):
            replace_file(self.run.config_path, self.plan.resolution.stored.to_yaml().encode())

    def _choose_strategy(self) -> None:
        """Measure the workers, choose a strategy, and report the reason."""
        resumption, name = self.plan.resumption, self.plan.strategy.name
        known = resumption is not None and resumption.regime == name
        if not (known or self._start.budget.is_used_up):
            choice = choose_strategy.measured(self._session, self._start.budget.seconds)
            if choice is None:
                return  # interrupted
            self._session.report(str(choice))
            self._measured = isinstance(choice, choose_strategy.MeasuredStrategy)
            name = choice.strategy
        # A resume measures if this call has not.
        plan = self.plan.with_strategy(name, measured=known or self._measured)
        self._take_up(plan, checkpoints.begin(plan, self._arena, self._session.ledger))
        self._monitor.budget = self._start.budget
        self._session.decide(plan.place(name))
        for message in (*self._start.messages, *plan.notes):
            self._reporter.report_once(message)
        self._session.until(self._supervisor.ready, Doing(Activity.STARTING))
        self._changes = Changes.of(self._session, plan, self._start, self._take_up)
        self._elastic.changes = self._changes

    def _take_up(self, plan: Plan, start: checkpoints.Start) -> None:
        """Continue with one of the candidate strategies, for which the arena is filled."""
        self.plan = self._reporter.plan = self._elastic.plan = plan
        self._start = self._saver.start = start
        self._monitor.strategy = plan.strategy.name
        with suppress(EnvironmentLacks):  # a full disk is reported for the metrics
            self._write_config()

    def _terms(self, plan: Plan) -> StrategyTerms:
        """The part of a plan that workers need."""
        budget, follows = checkpoints.start_of(plan).budget, self._following is not None
        # Steps on text that arrives may have fewer tokens than others.
        limit = budget.steps if follows else budget.step_limit(plan.tokens_per_step)
        return StrategyTerms(plan.for_workers(), budget, limit)

    def _train(self) -> None:
        config, counters = self.plan.config, self._arena.counters
        self._limit_time()
        if self._start.budget.is_used_up:
            counters.store("start_ns", monotonic_ns())
            self._monitor.ended_ns, self._monitor.over = counters.load("start_ns"), True
            return
        self._session.train()
        if config.eval_every.on and config.follow is None:
            self._monitor.find_counts(self.plan.data, self.plan.held_out.asked_bytes)
        regular: list[tuple[Interval, Callable[[], None]]] = [
            (config.eval_every, partial(self._watch.ask_for_next, self._session, self._monitor)),
            (config.sample_every, partial(self._session.ask, "sample")),
            (config.save_every, self._saver.save_now_and_then),
        ]
        last = [(0, 0.0)] * len(regular)
        while not self._signals.count:
            if self._budget_is_used():
                self._monitor.over = True
                break
            self._session.poll()
            if self._changes is not None:
                self._changes.look()
            if self._watch.look(self._monitor, self._saver.save_best, self._session.report):
                self._monitor.over = True
                break
            steps, seconds = counters.load("steps"), self._monitor.seconds()
            for k, (interval, act) in enumerate(regular):
                if self._following is not None and steps == last[k][0]:
                    continue  # it waits for text, and has nothing new to show
                if interval.due(steps=steps - last[k][0], seconds=seconds - last[k][1]):
                    last[k] = (steps, seconds)
                    act()

    def _limit_time(self) -> None:
        """Compute the time for training from a budget of time, now that workers have started."""
        limit_s = self._deadlines.training_s(
            save_s=checkpoints.save_s(self.plan, self._arena),
            evaluates=self.plan.config.eval_every.on,
            samples=self.plan.config.sample_every.on,
            evaluation_s=self.plan.held_out.estimate_s * (1 + len(self._session.strategy.copies())),
        )
        if limit_s is not None:
            self._arena.counters.store("limit_ns", int(limit_s * 1e9))
            self._monitor.budget = replace(self._start.budget, seconds=limit_s)
        if self._start.budget.is_used_up:
            return
        self._monitor.start_s = start_s = self._deadlines.spent_s()
        if limit_s is not None and (
            warning := self._deadlines.late_start(start_s, limit_s, measured=self._measured)
        ):
            self._session.report(warning)

    def _budget_is_used(self) -> bool:
        """Whether a limit is reached, in finished steps (`Strategy.steps_done`)."""
        counters, budget = self._arena.counters, self._monitor.budget
        return (
            self._monitor.no_step_fits(self._session.strategy.step_s(self._arena))
            or (
                self._session.step_limit is not None
                and self._session.steps_done() >= self._session.step_limit
            )
            or (
                budget.tokens is not None
                and counters.load("tokens") + counters.load("tokens_elsewhere") >= budget.tokens
            )
        )

    def _time_is_over(self) -> bool:
        limit_s = self._monitor.budget.seconds
        return limit_s is not None and self._monitor.seconds() >= limit_s

    def _rest(self) -> None:
        """Let workers finish their step; one that takes too long is abandoned.

        Its ticket is returned, and a resume computes it again.

        Raises:
            WorkerFailed: training ended before its budget was used.
        """
        self._supervisor.command(Command.REST)
        self._supervisor.dismiss_starting()
        resting, doing = self._supervisor.resting, Doing(Activity.FINISHING)
        self._session.until(
            lambda: self._signals.count > 0 or self._time_is_over() or resting(), doing
        )
        limit_s, late_s = checkpoints.pause_limit_s(self._arena), 0.0
        if self._time_is_over():
            late_s = self._deadlines.step_s(checkpoints.save_s(self.plan, self._arena))
            limit_s = GRACE_S if self._arena.counters.load("steps") else max(GRACE_S, late_s)
        if not self._session.until(resting, doing, limit_s=limit_s, even_if_interrupted=True):
            if late_s > limit_s:  # one worker has to evaluate and sample
                self._session.until(self._supervisor.one_rests, doing, late_s - limit_s)
            self._session.abandon()
        self._monitor.ended_ns = self._monitor.ended_ns or monotonic_ns()
        self._session.settle()
        self._end_rounds()
        self._end_publishing()
        if warning := self._monitor.share_warning():
            self._session.report(warning)
        if not (self._signals.count or self._watch.ended or self._budget_is_used()):
            raise WorkerFailed(
                f"training ended after {self._session.steps_done()} of "
                f"{self._session.step_limit} steps"
            )
        if self._monitor.over and not self._monitor.totals()[0]:
            self._session.report(
                "no step was finished in the time; give more with --time, or choose a smaller "
                "--model, --batch-size or --seq-len"
            )

    def _end_rounds(self) -> None:
        """Let the cluster take what this machine has trained since the last round."""
        if (link := self._supervisor.link) is None or self.plan.config.cluster is None:
            return
        if not self._supervisor.has_workers():
            return  # all were ended within a step; what waits is in the checkpoint
        save_s = checkpoints.save_s(self.plan, self._arena)
        limit_s = self._deadlines.round_s(self.plan.config.cluster.round_every + ROUND_S, save_s)
        link.ask_for_last_round()
        until = partial(self._session.until, doing=Doing(Activity.FINISHING))
        if not until(lambda: link.has_sent_all, limit_s=limit_s, even_if_interrupted=True):
            until(lambda: not link.is_in_doubt, limit_s=ROUND_S, even_if_interrupted=True)
        link.end_rounds()

    def _save_and_evaluate(self) -> None:
        """Save the final state while workers evaluate it."""
        evaluates = (
            self.plan.config.eval_every.on
            and self._supervisor.has_workers()
            and self._evaluation.begin()
        )
        try:
            if self._start.budget.is_used_up and self.plan.resumption is not None:
                self._saver.newest = self.plan.resumption.checkpoint.path
            else:
                path = self._saver.save()
                if self._signals.count:
                    self._session.report(f"saved {path.name}")
        except EnvironmentLacks as error:
            self._unsaved = error  # the model is still evaluated for its scores
            self._session.report(f"no checkpoint: {error}")
        except CheckpointError as error:
            raise Diverged(
                f"{error}; lower --lr or --clip, then --resume from the last checkpoint"
            ) from error
        self._watch.close(self.run, self._saver.newest, self._session.report)
        if evaluates:
            optional = GAVE_UP_WORKER if self._signals.count else ()
            with suppress(StopNow, *optional):  # the final state is saved
                self._evaluation.finish()

    def _rescued(self, failure: WorkerFailed) -> WorkerFailed:
        """Save the state of a failed run, and add the command to resume it to the error."""
        self._supervisor.kill()
        if not self._session.steps_done():
            return failure
        try:
            self._session.settle()
            self._saver.save()
        except (EnvironmentLacks, CheckpointError) as error:
            return WorkerFailed(f"{failure}; its last steps could not be saved: {error}")
        return WorkerFailed(
            f"{failure}; saved {self._saver.newest}, resume with mlxhog train --resume "
            f"{self.run.directory}"
        )

    def _end_publishing(self) -> None:
        """Publish the final weights for readers; no worker may move."""
        if self._publisher is not None:
            self._publisher.end()

    def _write_status(self, **more: Any) -> None:
        """Replace run.json."""
        self._reporter.write_status(
            batch_size=self._batch,
            status=self._status,
            checkpoint=self._saver.newest,
            automatic=self.plan.resolution.automatic,
            notices=list(self._supervisor.notices),
            **self._cluster(),
            **more,
        )

    def _cluster(self) -> dict[str, object]:
        """The machine's part in the run's cluster, if it has one."""
        link = self._supervisor.link
        return {} if link is None else {"cluster": link.report()}

    def _result(self, error: MlxhogError | None) -> Result:
        return self._reporter.result(
            self._supervisor,
            status=self._status,
            checkpoint=self._saver.newest,
            copies_bits_per_byte=tuple(self._evaluation.copies_bits_per_byte),
            network_bytes=checkpoints.network_bytes(self.plan, self._arena, self._start),
            error=error,
        )
