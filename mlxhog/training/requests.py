"""Requests of other processes to a run in progress: `mlxhog join`, `stop`, the board, and others.

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
optimizer state and the step counter of the worker with the most steps. The state is copied between
two of that worker's steps, so that moments and their projection or basis fit together.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import Refused, Request, RunServer
from mlxhog.arena.workers import Phase, State
from mlxhog.base import machine, verdicts
from mlxhog.base.workers import GPU_BACKENDS, joining_workers
from mlxhog.errors import ConfigError, EnvironmentLacks, RunError, shown
from mlxhog.optim import updates
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.report.metrics import Activity, Doing
from mlxhog.training import kernel_choice

if TYPE_CHECKING:
    from mlxhog.training.plan import Plan
    from mlxhog.training.run import Training

SHORT = (Activity.STARTING, Activity.PAUSING, Activity.CHANGING)
"""Activities after which the run trains."""
COPY_S = 1.0  # time to try to copy state between two writes of its owner
_Answer = dict[str, Any]


class Requests:
    """Answers the requests to one run; used by the thread that polls its workers."""

    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "status": (),
        "stop": (),
        "checkpoint": (),
        "sample": (),
        "join": ("workers", "threads"),
        "leave": ("worker",),
    }

    def __init__(self, run: Training, server: RunServer) -> None:
        """Prepare; `serve` answers the requests that the server receives."""
        self._run, self._server = run, server
        self._waiting: deque[Request] = deque()
        self._doing: Doing | None = None

    def serve(self, doing: Doing | None) -> None:
        """Answer the requests that have arrived.

        Args:
            doing: activity of the run other than training; None while it trains.
        """
        for request in self._server.take():
            if request.name in ("status", "stop"):
                self._doing = doing
                self._answer(request)
            elif request.name in self.FIELDS:
                self._waiting.append(request)
            else:
                names = ", ".join(self.FIELDS)
                request.refuse(Refused(f"no request {request.name!r}; a run takes {names}"))
        if doing is None:
            # A request may poll workers itself, and so call this again with an activity.
            while self._waiting:
                self._answer(self._waiting.popleft())
        elif doing.activity not in SHORT:
            self._refuse_all(f"the run is {doing}: its training is over")

    def close(self) -> None:
        """Refuse all open requests, since the run has ended."""
        self._waiting.extend(self._server.take())
        self._refuse_all("the run has ended")
        self._server.close()

    def _answer(self, request: Request) -> None:
        names = self.FIELDS[request.name]
        try:
            if unknown := [name for name in request.fields if name not in names]:
                expected = f"it has {', '.join(names)}" if names else "it has none"
                raise Refused(f"the request has no field {unknown[0]!r}; {expected}")
            answer = getattr(self, f"_{request.name}")(**request.fields)
        except RunError as error:
            request.refuse(error)
        except BaseException:  # of the workers, and so of the run
            request.hang_up()
            raise
        else:
            request.answer(**answer)

    def _refuse_all(self, why: str) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            request.refuse(Refused(f"no {request.name}: {why}"))

    # -- the answers -----------------------------------------------------------------------------

    def _status(self) -> _Answer:
        run = self._run
        steps, tokens, seconds = run.monitor.totals()
        fixed = run.plan.strategy.fixed and run.changes is None
        return {
            "doing": str(self._doing or "training"),
            "step": steps,
            "tokens": tokens,
            "seconds": seconds,
            "workers": [
                {name: getattr(one, name) for name in ("slot", "backend", "pid", "state", "steps")}
                for one in run.monitor.worker_reports()
            ],
            "free_slots": 0 if fixed else len(run.free_slots()),
        }

    def _stop(self) -> _Answer:
        self._run.signals.end()
        self._run.report("stopping, by mlxhog stop: finishing the step, then a checkpoint")
        return {"message": "the run finishes its step, saves a checkpoint and ends"}

    def _checkpoint(self) -> _Answer:
        return {"path": str(self._run.save_while_training())}

    def _sample(self) -> _Answer:
        self._run.ask("sample")
        return {"message": "the next worker that finishes a step writes a sample"}

    def _join(self, workers: object = "1", threads: object = None) -> _Answer:
        """Start all requested workers or none: a number or backends, as `--workers` takes them."""
        if not isinstance(workers, str):
            raise Refused(f"workers is {shown(workers)}; wanted text such as 'torch:cpu*2'")
        threads = _number("threads", threads)
        run, plan = self._run, self._elastic()
        free, present = run.free_slots(), len(run.seats)
        try:
            specs = joining_workers(
                workers,
                threads or plan.config.threads,
                machine=machine.here(),
                present=present,
                free=len(free),
            )
            forms = self._kernels([spec.backend for spec in specs])
            plan.memory.check_run(plan.arena_bytes, plan.worker_bytes, present + len(specs))
        except (ConfigError, EnvironmentLacks) as error:
            raise Refused(str(error), error.exit_code) from error
        names = []
        for slot, spec, form in zip(free, specs, forms, strict=False):
            inherit(run.arena, slot, plan.private_state)
            run.join(slot, spec, form)
            run.monitor.workers[slot] = spec
            s = "s" * (spec.threads > 1)
            names.append(f"worker {slot} ({spec.backend}, {spec.threads} thread{s})")
        rest = len(free) - len(specs)
        return {
            "message": f"{', '.join(names)} join{'s' * (len(names) == 1)} as soon as its framework "
            f"is loaded; {rest} slot{'s' * (rest != 1)} free"
        }

    def _leave(self, worker: object = None) -> _Answer:
        """Let a worker finish its step and leave: that of a slot, or the one that joined last."""
        slot, run, plan = _number("worker", worker), self._run, self._elastic()
        staying = [seat for seat in run.seats if seat.leaving_s is None]
        slots = [seat.slot for seat in staying]
        have = f"the run has {', '.join(map(str, sorted(slots)))}"
        if slot is None:
            joined = [seat.slot for seat in staying if seat.joined]
            if not joined:
                raise Refused(f"no worker has joined; say which is to leave: {have}")
            slot = joined[-1]
        if slot not in slots:
            raise Refused(f"no worker {slot}; {have}")
        if not any(seat.slot != slot and (seat.up or not seat.joined) for seat in staying):
            raise Refused(f"worker {slot} is the only one that trains; end the run: mlxhog stop")
        if RESIDUAL in plan.private_state:
            raise Refused(
                f"worker {slot} cannot leave: updates that it has not written yet "
                "(error_feedback) would be lost"
            )
        backend = run.monitor.workers[slot].backend
        run.leave(slot)
        return {"message": f"worker {slot} ({backend}) finishes its step and leaves"}

    def _elastic(self) -> Plan:
        """The plan of a run whose workers may come and go; ends its rounds first."""
        if self._run.changes is not None:
            self._run.changes.end_rounds("workers join and leave without rounds")
        if why := self._run.plan.strategy.fixed:
            raise Refused(
                f"the workers of this run are fixed: {why}; workers join and leave with strategy "
                "hogwild: --strategy hogwild --max-workers N, for a new run or with --resume"
            )
        return self._run.plan

    def _kernels(self, backends: list[str]) -> tuple[str, ...]:
        """The kernels of workers that join; refuses those that the run cannot have."""
        plan, record = self._run.plan, verdicts.load()
        if plan.config.determinism == "record" and plan.private_state:
            raise ConfigError(
                "no worker can join this recorded run: it would begin with another worker's "
                "moments, copied while that worker trains; record with shared moments "
                "(--moments shared), or begin with all workers"
            )
        together = [*(seat.spec.backend for seat in self._run.seats), *backends]
        writers = kernel_choice.choose_writers(plan.config, together, record, lambda note: None)
        if writers != plan.writers:
            raise ConfigError(
                f"{', '.join(backends)} cannot join: the run writes with "
                f"gpu_write={plan.writers.gpu_write} and write={plan.writers.write}, but with "
                f"them it would need {writers.gpu_write} and {writers.write}; start a run with "
                "all workers"
            )
        on_gpu = sum(backend in GPU_BACKENDS for backend in together)
        if on_gpu > plan.gpu_share.workers:
            raise ConfigError(
                f"the GPU's memory is divided among {plan.gpu_share.workers} worker"
                f"{'s' * (plan.gpu_share.workers > 1)} of this run, so no other can join on it; "
                "start a run with more of them"
            )
        forms = kernel_choice.choose_kernels(plan.config, backends, record, lambda note: None)
        kernel_choice.check_recorded(plan.config, backends, forms, record)
        return forms


def _number(name: str, value: object) -> int | None:
    """A field with a number of at least 1; None without the field."""
    if value is None or (isinstance(value, int) and type(value) is int and value >= 1):
        return value
    raise Refused(f"{name} is {shown(value)}; wanted a whole number of at least 1")


def inherit(arena: Arena, slot: int, private: tuple[str, ...]) -> None:
    """Give a free slot the optimizer state of the worker with the most steps.

    Updates that a worker still has to write, or wrote in advance (error feedback), stay its own.

    Concurrency: that worker may be training. Its state is copied between two writes; if there is no
    such gap, the copy may hold parts of two of its steps.
    """
    workers = [one for one in arena.workers if one.state != State.FREE and one.slot != slot]
    source, heir = max(workers, key=lambda one: one.opt_step), arena.workers.entry(slot)
    own = [kind for kind in private if kind in (RESIDUAL, FEEDBACK)]
    kinds = [kind for kind in private if kind not in own]
    end_ns = monotonic_ns() + int(COPY_S * 1e9)
    while True:
        before = None if source.phase == Phase.APPLY else source.opt_step
        for kind in kinds:
            updates.snapshot(
                arena.segment(f"{kind}.{slot}"), arena.segment(f"{kind}.{source.slot}")
            )
        is_whole = source.phase != Phase.APPLY and source.opt_step == before
        if is_whole or not kinds or monotonic_ns() >= end_ns:
            break
        time.sleep(0.001)
    heir.opt_step = source.opt_step
    for kind in own:
        arena.segment(f"{kind}.{slot}").fill(0.0)
