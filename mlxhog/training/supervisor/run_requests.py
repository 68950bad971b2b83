"""Requests of other processes to a run in progress: `mlxhog join`, `stop` and others.

    request     fields           answer             when
    status                       state of the run   always
    stop                         message            always: like one Ctrl-C, ends with a checkpoint
    checkpoint                   path               while training
    sample                       message            while training
    join        workers, threads message            while training
    leave       worker           message            while training

A request for training that arrives while workers start or pause waits until they train.

Only the supervisor spawns and reaps, so joining is a request to it. Tickets, ledger and budget do
not depend on the number of workers, so only the speed changes: a worker that leaves finishes its
step first, and the batch of a killed worker is returned. A worker that joins starts with the
optimizer state and the step counter of the worker with the most steps, copied while all pause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlxhog.arena.requests import ControlRequest, Refused, RunServer
from mlxhog.base import machine
from mlxhog.base.workers import GPU_BACKENDS, joining_workers
from mlxhog.errors import ConfigError, EnvironmentLacks, RunError, shown
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.progress import Phase, PhaseStatus
from mlxhog.training.plan import kernel_choice
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor import arena_state
from mlxhog.training.supervisor.change_strategy import StrategyChanges
from mlxhog.training.supervisor.checkpoints import Checkpoints
from mlxhog.training.supervisor.reporting import Reporter
from mlxhog.training.supervisor.session import Session

SHORT_PHASES = (Phase.STARTING, Phase.PAUSING, Phase.CHANGING)
"""Phases after which the run trains."""
FIELDS: dict[str, dict[str, type]] = {
    "status": {}, "stop": {}, "checkpoint": {}, "sample": {},
    "join": {"workers": str, "threads": int}, "leave": {"worker": int},
}  # fmt: skip
"""The requests, and the type of each of their fields, all of which may be missing."""
_Answer = dict[str, Any]


@dataclass(eq=False)
class Requests:
    """Answers the requests to one run; used by the thread that polls its workers."""

    session: Session[TextPlan]
    reporter: Reporter
    server: RunServer
    checkpoints: Checkpoints
    changes: Callable[[], StrategyChanges | None]
    interrupt: Callable[[], None]
    waiting: deque[ControlRequest] = field(default_factory=deque)

    def serve(self, doing: PhaseStatus | None) -> None:
        """Answer the requests that have arrived; `doing` is None while the run trains."""
        for request in self.server.pop_requests():
            if request.name == "status":
                self._answer(request, doing=str(doing or "training"))
            elif request.name == "stop":
                self._answer(request)
            else:
                self.waiting.append(request)
        if doing is None:
            # A request may poll workers itself, and so call this again with an activity.
            while self.waiting:
                self._answer(self.waiting.popleft())
        elif doing.activity not in SHORT_PHASES:
            self._refuse_all(f"the run is {doing}: its training is over")

    def close(self) -> None:
        """Refuse all open requests, since the run has ended."""
        self.waiting.extend(self.server.pop_requests())
        self._refuse_all("the run has ended")
        self.server.close()

    def _answer(self, request: ControlRequest, **more: str) -> None:
        try:
            if (kinds := FIELDS.get(request.name)) is None:
                raise Refused(f"no request {request.name!r}; expected {', '.join(FIELDS)}")
            fields = {name: one for name, one in request.fields.items() if one is not None}
            for name, value in fields.items():
                if type(value) is not kinds.get(name):
                    expected = ", ".join(f"{name}: {kind.__name__}" for name, kind in kinds.items())
                    raise Refused(f"{name} is {shown(value)}, and {request.name} has ({expected})")
            request.answer(**getattr(self, f"_{request.name}")(**more, **fields))
        except RunError as error:
            request.refuse(error)
        except BaseException:  # of the workers, and so of the run
            request.hang_up()
            raise

    def _refuse_all(self, why: str) -> None:
        while self.waiting:
            request = self.waiting.popleft()
            request.refuse(Refused(f"no {request.name}: {why}"))

    def _status(self, doing: str) -> _Answer:
        session, monitor = self.session, self.reporter.monitor
        steps, tokens, seconds = monitor.totals()
        fixed = session.strategy.fixed and self.changes() is None
        return {
            "phase": doing,
            "step": steps,
            "tokens": tokens,
            "seconds": seconds,
            "workers": [
                {name: getattr(one, name) for name in ("slot", "backend", "pid", "state", "steps")}
                for one in monitor.worker_reports()
            ],
            "free_slots": 0 if fixed else len(session.workers.free_slots()),
        }

    def _stop(self) -> _Answer:
        self.interrupt()
        self.session.report("stopping, by mlxhog stop: finishing the step, then a checkpoint")
        return {"message": "the run finishes its step, saves a checkpoint and ends"}

    def _checkpoint(self) -> _Answer:
        return {"path": str(self.checkpoints.save_while_training())}

    def _sample(self) -> _Answer:
        self.session.ask("sample")
        return {"message": "the next worker that finishes a step writes a sample"}

    def _join(self, workers: str = "1", threads: int | None = None) -> _Answer:
        """Start all requested workers or none: a number or backends, as `--workers` takes them.

        Each gets the optimizer state of the worker with the most steps.
        """
        session, plan = self.session, self._elastic()
        free, present = session.workers.free_slots(), len(session.workers.handles)
        try:
            specs = joining_workers(
                workers,
                plan.config.threads if threads is None else threads,
                machine=machine.here(),
                present=present,
                free=len(free),
            )
            kernels = self._kernels([spec.backend for spec in specs])
            plan.memory.check_run(plan.arena_bytes, plan.worker_bytes, present + len(specs))
        except (ConfigError, EnvironmentLacks) as error:
            raise Refused(str(error), error.exit_code) from error
        with session.paused() as is_quiesced:
            if not is_quiesced:
                raise Refused("the workers did not pause, so none can join now")
            for slot in free[: len(specs)]:
                private = tuple(plan.optimizer.state_segments)
                arena_state.inherit(session.arena, slot, private, one_state=plan.strategy.one_state)
        try:
            session.workers.join(list(zip(free, specs, kernels, strict=False)))
        except EnvironmentLacks as error:
            raise Refused(f"{error}; the run continues as it is", error.exit_code) from error
        names = []
        for slot, spec in zip(free, specs, strict=False):
            self.reporter.monitor.workers[slot] = spec
            s = "s" * (spec.threads > 1)
            names.append(f"worker {slot} ({spec.backend}, {spec.threads} thread{s})")
        left = len(free) - len(specs)
        return {
            "message": f"{', '.join(names)} join{'s' * (len(names) == 1)} as soon as its framework "
            f"is loaded; {left} slot{'s' * (left != 1)} free"
        }

    def _leave(self, worker: int | None = None) -> _Answer:
        """Let a worker finish its step and leave: that of a slot, or the one that joined last."""
        slot, workers, plan = worker, self.session.workers, self._elastic()
        staying = {handle.slot: handle for handle in workers.handles if handle.leaving_s is None}
        have = f"the run has {', '.join(map(str, sorted(staying)))}"
        if slot is None:
            *_, slot = None, *(handle.slot for handle in staying.values() if handle.joined)
        if slot is None:
            raise Refused(f"no worker has joined; say which is to leave: {have}")
        if (leaving := staying.get(slot)) is None:
            raise Refused(f"no worker {slot}; {have}")
        others = [handle for handle in staying.values() if handle is not leaving]
        if not any(handle.up or not handle.joined for handle in others):
            raise Refused(f"worker {slot} is the only one that trains; end the run: mlxhog stop")
        own = {
            RESIDUAL: "updates that it has not written yet (error_feedback) would be lost",
            FEEDBACK: "what it has added in advance (delay_feedback) would stay",
        }
        if why := "; ".join(own[one] for one in plan.optimizer.state_segments if one in own):
            raise Refused(f"worker {slot} cannot leave: {why}")
        workers.leave(slot)
        return {"message": f"{leaving} finishes its step and leaves"}

    def _elastic(self) -> TextPlan:
        """The plan of a run whose workers may come and go; ends its synchronous steps first."""
        if (changes := self.changes()) is not None:
            changes.end_sync("workers join and leave without synchronous steps")
        if why := self.session.plan.strategy.fixed:
            raise Refused(
                f"the workers of this run are fixed: {why}; workers join and leave with strategy "
                "collect or hogwild: --strategy hogwild --max-workers N, for a new run or with "
                "--resume"
            )
        return self.session.plan

    def _kernels(self, backends: list[str]) -> tuple[str, ...]:
        """The kernels of workers that join; refuses those that the run cannot have."""
        plan = self.session.plan
        if plan.config.determinism == "record" and plan.optimizer.state_segments:
            raise ConfigError(
                "no worker can join this recorded run: it would begin with another worker's "
                "moments, copied while that worker trains; record with shared moments "
                "(--moments shared), or begin with all workers"
            )
        together = [*(handle.spec.backend for handle in self.session.workers.handles), *backends]
        writers, kernels = kernel_choice.choose_for(plan.config, plan.model, together)
        on_gpu = sum(backend in GPU_BACKENDS for backend in together)
        if writers != plan.writers or on_gpu > plan.gpu_share.workers:
            raise ConfigError(
                f"{', '.join(backends)} cannot join: the run applies updates with gpu_write="
                f"{plan.writers.gpu_write} and write={plan.writers.write}, and divides the GPU's "
                f"memory among {plan.gpu_share.workers}, as its first workers need; start a run "
                "with all workers"
            )
        return kernels[-len(backends) :]
