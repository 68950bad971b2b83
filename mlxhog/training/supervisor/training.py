"""train(): one run from its configuration to its result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.published import WORDS, Publisher
from mlxhog.arena.requests import socket_path
from mlxhog.base import darwin, disk
from mlxhog.base.interrupts import Interrupts
from mlxhog.base.output import say_once
from mlxhog.base.processes import require_descriptors
from mlxhog.base.quantities import Interval
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.new_run import new_run
from mlxhog.checkpoint.run import STARTING, Run
from mlxhog.checkpoint.run_files import DAMAGED
from mlxhog.config.config import TrainConfig
from mlxhog.display import card
from mlxhog.display.plain import RunView
from mlxhog.display.views import Observer
from mlxhog.errors import CheckpointError, Diverged, EnvironmentLacks, MlxhogError, WorkerFailed
from mlxhog.optim.schedules import Falling
from mlxhog.progress import Phase, PhaseStatus, Progress, Result
from mlxhog.training.plan import preview, resume
from mlxhog.training.plan.batch_size import advice
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.sizes import overfitting
from mlxhog.training.plan.strategy_rule import sync_steps_before
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor import arena_state, run_folder
from mlxhog.training.supervisor.change_strategy import StrategyChanges
from mlxhog.training.supervisor.checkpoints import Checkpoints
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.ending import Ending, text_of
from mlxhog.training.supervisor.evaluations import Evaluations
from mlxhog.training.supervisor.reporting import Reporter, summary
from mlxhog.training.supervisor.run_requests import Requests
from mlxhog.training.supervisor.session import Session, StopNow

if TYPE_CHECKING:
    from mlxhog.training.supervisor.follow import Follower

DESCRIPTORS = 48  # files, pipes and sockets of a run, at least
NGRAM_S = 1.0  # how long the end of a short run waits for its n-gram baseline
LEAVING_S = 5.0  # limit for workers to leave
FOLDER_S = 0.5  # between two looks whether the run's folder was renamed or removed
INTERRUPTED = "finishing the step; again stops at once"
END_FIELDS = ("status", "checkpoint", "result", "error", "best")
OF_TRAINING = ("automatic", "commands", "resumed", "steps", "tokens", "seconds", "earlier")
"""Fields of run.json on the end of a run, and on what it has trained."""


def train(
    config: TrainConfig, *, observer: Observer[Progress] | None = None, run: Run | None = None
) -> Result:
    """Train in a new run, or in one that the caller locks; raises as `mlxhog.train`."""
    began_ns = monotonic_ns()
    config = resume.located(config)
    with ExitStack() as stack:
        if config.resume is not None:
            run, _ = checkpoint.resumable(config.resume, Path(config.runs_dir))
            stack.enter_context(run.lock())
        run = run or stack.enter_context(new_run(config))
        assert run is not None, "only a resumed run has no folder to create"
        require_descriptors(DESCRIPTORS, "a run")
        # A function of the caller is called in place of what our views show.
        shows = isinstance(observer, RunView) and not observer.is_quiet
        plan = make_plan(config, progress=shows)
        if plan.base is not None:
            base = plan.base.kept(run)
            base.inside(run.directory).shared(plan.model, say_once)  # converted before workers wait
            plan = plan.with_base(base)
        with ExitStack() as parts:
            with Training(plan, observer, parts, began_ns, run) as training:
                training.start()
                training.train()
                training.end()
            return training.result


class Training:
    """One call of `train`: a run that a user watches, interrupts and sends requests to.

    In a `with` block it starts, trains and ends. The end of the block, also by an error, stops the
    workers and reports the result.
    """

    result: Result  # after the block

    def __init__(
        self,
        plan: TextPlan,
        observer: Observer[Progress] | None,
        stack: ExitStack,
        began_ns: int,
        run: Run,
    ) -> None:
        # Its parts call its methods, and have the arena: this frees them with the run, without a
        # wait for the garbage collector.
        stack.callback(vars(self).clear)
        self._stack, self._began_ns, self.run, self.signals = stack, began_ns, run, Interrupts()
        self._follower: Follower | None = None
        folder, earlier = run.directory, plan.resumption
        self._before = run.read_status()
        if (config := plan.config).follow is not None:
            from mlxhog.training.supervisor.follow import Follower

            self._follower = Follower(folder, plan.data.tokenizer, config)
            assert plan.other is None  # it has batches of its own
            plan = replace(plan, batches=self._follower.batches(plan.batches))
        self.session = session = Session(
            plan,
            folder,
            stack=stack,
            report=self.report,
            on_poll=self._on_poll,
            interrupts=lambda: self.signals.count,
            fallback=folder,
        )
        arena = session.arena
        self.changes: StrategyChanges | None = None  # None for a strategy that stays
        self._notes = [*plan.notes, *plan.data.notes, arena.note, disk.note(folder)]
        self._notes.append(overfitting(plan, preview.epochs(plan)) or "")
        arena_state.load(plan, arena, session.ledger, self._notes.append)
        if earlier is not None:
            session.network_bytes_before = int(earlier.state["network_bytes"])
        self.reporter = Reporter(plan, run, arena, observer)
        self.monitor = self.reporter.monitor
        stack.callback(self.monitor.release)
        if (sidecar := session.workers.sidecar) is not None:
            self.monitor.machines = sidecar.members.reports
        # Steps on text that arrives may have fewer tokens than others.
        done = session.ledger.count_done()
        limit = plan.budget.step_limit(partial(plan.strategy.steps_of, done=done))
        session.begin(plan.budget.steps if self._follower else limit, sync_steps_before(plan, done))
        run_folder.write_model(run, plan)
        self._folder = run_folder.FolderFollower(run, lambda: session.plan, stack)
        server = stack.enter_context(arena.serve(socket_path(folder)))
        self._publisher: Publisher | None = None
        if WORDS in arena.layout.segments:
            self._publisher = Publisher(
                arena,
                server,
                lambda arena, out: session.strategy.load(arena, out, training=True),
                plan.config.live_every,
            )
            stack.callback(self._publisher.end)
        self._watch = watch = ValidationWatch(plan.config, earlier, plan.validation.text)
        watch.show(self.monitor)
        if plan.config.follow is None:
            self.monitor.epoch = lambda: session.ledger.count_done() / session.ledger.n
        if plan.config.keep_awake:
            self._notes.append(stack.enter_context(darwin.awake()))
        self.checkpoints = Checkpoints(
            session, self.reporter, watch, self._publisher, self._find_folder
        )
        self._evaluations = Evaluations(session, self.reporter)
        self._ending = Ending(
            session, self.reporter, self.checkpoints, self._evaluations, watch, self._publisher
        )
        self._requests = Requests(
            session, self.reporter, server, self.checkpoints, lambda: self.changes, self.signals.end
        )

    def __enter__(self) -> Self:
        """From now on signals are counted, and every error ends the run as `__exit__` does."""
        # After signals are no longer counted, so that one can end a tracker's wait for a network.
        self._stack.callback(
            lambda: self.reporter.close_trackers(failed=self._ending.status == "failed")
        )
        self._stack.enter_context(self.signals)
        return self

    def start(self) -> None:
        """Show how the run begins, start the workers, and wait until all are ready."""
        session, plan, directory = self.session, self.session.plan, self.run.directory
        if plan.resumption is None:
            self.reporter.write_options()
        self._write_status()
        plan.data.text.write(directory)  # after the record of what is new in it
        for message in (summary(plan, self.run), *filter(None, self._notes)):
            self.reporter.report_once(message)
        if plan.base is not None:
            plan.base.inside(directory).check(plan.model, self.report)
        if self._follower is not None:
            if plan.resumption is None:
                self.checkpoints.save()  # so that text read from now on survives a kill
            self._follower.give(session.arena, session.ledger, training=False)
            self._stack.enter_context(self._follower)
        if plan.config.determinism == "record":
            from mlxhog.training.supervisor import replay

            replay.begin_record(plan, directory, session.arena)
        session.workers.spawn()
        session.until(session.workers.ready, PhaseStatus(Phase.STARTING))

    def train(self) -> None:
        """Train until the budget is used up, the user interrupts, or patience ends."""
        session, plan, monitor = self.session, self.session.plan, self.monitor
        config, counters, clock = plan.config, session.arena.counters, session.clock
        if self.signals.count:
            return
        if plan.resumption is not None:  # a start without training leaves both as they were
            self.reporter.write_options()
            self.reporter.drop_lost_metrics()
        self.reporter.open_trackers()  # likewise: they drop the lost steps, too
        if session.budget.is_used_up:
            clock.start()
            clock.stop()
            monitor.over = True
            return
        schedule = config.schedule
        if plan.other and not (isinstance(schedule, Falling) and schedule.epochs):
            self.changes = StrategyChanges(session, self.reporter)  # it counts equal steps
        if config.init_from is not None and plan.resumption is None and config.eval_every.on:
            self._evaluations.score_base()
        monitor.start_s = (session.begin_training() - self._began_ns) / 1e9
        if config.eval_every.on and config.follow is None:
            monitor.find_ngram_baseline(plan.data, plan.validation.asked_bytes)
        regular: list[tuple[Interval, Callable[[], object]]] = [
            (config.eval_every, self._evaluations.ask_for_next),
            (config.sample_every, partial(session.ask, "sample")),
            (config.save_every, self.checkpoints.save_now_and_then),
        ]
        last = [(0, 0.0)] * len(regular)
        while not self.signals.count:
            if session.budget_is_used():
                break
            session.poll()
            if self.changes is not None:
                self.changes.look()
            if self._watch.look(monitor, self.checkpoints.save_best, self.report):
                break
            steps, seconds = counters.load("steps"), clock.seconds()
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
        if self.session.clock.has_started:
            self._ending.complete()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Save, stop the workers and report; returns whether the result tells of the error."""
        session, reporter, ending = self.session, self.reporter, self._ending
        with ExitStack() as parts:  # all end, whatever one of them raises
            if self._publisher is not None:
                parts.callback(self._publisher.end)
            parts.callback(self._requests.close)
            parts.callback(
                lambda: session.workers.stop(0.0 if self.signals.count > 1 else LEAVING_S)
            )
            failure = ending.judge(error)
        plan, workers = session.plan, session.workers
        self.monitor.await_ngram_baseline(0.0 if self.signals.count else NGRAM_S)
        if plan.config.determinism == "record":
            from mlxhog.training.supervisor import replay

            replay.end_record(self.run.directory, session.arena, self.report)
        self.monitor.drain()
        if session.clock.has_started:
            reporter.append_metrics()  # the last line counts the whole run
            reporter.write_times()
        elif ending.status == "failed" and plan.resumption is None:
            if not isinstance(error, WorkerFailed):  # its message names a log
                self.run.write_status({"status": STARTING})  # `new_run` removes it
                return False
        of_end: dict[str, Any] = {}
        if plan.resumption is not None and not session.clock.has_started:  # nothing was trained
            self.checkpoints.newest = plan.resumption.checkpoint.path
            if self._before.get("status") != DAMAGED:
                of_end = {name: self._before.get(name) for name in END_FIELDS}
                of_end |= {n: self._before[n] for n in OF_TRAINING if n in self._before}
        newest = None
        with suppress(CheckpointError):
            newest = str(checkpoint.latest(self.run))
        self.result = result = reporter.result(
            status=ending.status,
            restarts=workers.restarts,
            torn=workers.torn,
            checkpoint=None if (path := self.checkpoints.newest) is None else str(path),
            newest_checkpoint=newest,
            error=None if failure is None else text_of(failure),
            copies_bits_per_byte=tuple(self._evaluations.copies_bits_per_byte),
            network_bytes=session.network_bytes(),
        )
        reporter.record("ended", text=": ".join(filter(None, [result.status, result.error])))
        try:  # a full disk does not keep the result from the caller
            self._write_status(**{"result": result.to_json(), "error": result.error, **of_end})
            card.write(self.run, plan.model)
        except MlxhogError as lacking:
            self.report(f"run.json or the model card is not up to date: {lacking}")
        if isinstance(failure, Diverged):
            self.report(str(failure))
        if ending.status == "done" and (text := advice(plan, result.to_json())):
            self.report(text)
        return error is None or isinstance(error, StopNow | Diverged)

    def report(self, message: str) -> None:
        """Show the user a message."""
        self.reporter.report(message)

    def _on_poll(self, doing: PhaseStatus | None) -> None:
        """Read the workers' records, show the progress, and answer requests."""
        session = self.session
        self.reporter.drain()
        if self.signals.received:
            self.reporter.report_once(INTERRUPTED)
        if self.reporter.is_due("folder", FOLDER_S):
            with suppress(EnvironmentLacks):  # the next save says why
                self._find_folder()
        if self._follower is not None:
            training = doing is None
            for message in self._follower.give(session.arena, session.ledger, training=training):
                self.report(message)
        self.reporter.report_now_and_then(doing)
        self._requests.serve(doing)

    def _find_folder(self) -> None:
        """Continue in the run's folder where it is now; an EnvironmentLacks if there is none."""
        if (moved := self._folder.find()) is not None:
            self.run, message = moved
            self.reporter.run, self.session.workers.run_dir = self.run, self.run.directory
            self.report(message)
            self._write_status()

    def _write_status(self, **more: Any) -> None:
        workers, plan = self.session.workers, self.session.plan
        sidecar = workers.sidecar
        fields = {
            "batch_size": None if plan.batch is None else plan.batch.to_json(),
            "status": self._ending.status,
            "checkpoint": self.checkpoints.newest,
            "notices": list(workers.notices),
            "best": self._watch.to_json(),
            **({} if sidecar is None else {"cluster": sidecar.report()}),
            **self._earlier(),
        }
        self.reporter.write_status(**fields | more)

    def _earlier(self) -> dict[str, Any]:
        """The end of the run before this command, whose scores hold if nothing newer is saved."""
        resumption, before = self.session.plan.resumption, self._before
        if resumption is None or self.checkpoints.newest is not None:
            return {}
        end = before if before.get("result") else before.get("earlier") or {}
        if Path(end.get("checkpoint") or "").name != resumption.checkpoint.path.name:
            return {}
        return {"earlier": {name: end.get(name) for name in ("checkpoint", "best", "result")}}
