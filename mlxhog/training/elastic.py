"""Workers that join and leave a run while it trains.

Only the supervisor spawns and reaps, so joining is a request to it (`requests.py`). Tickets, ledger
and budget do not know how many workers there are, so that nothing but the speed changes: a worker
that leaves finishes its step first, one that is killed gives its batch back.

A worker that joins goes on with the optimizer state and the step counter of the one that has taken
most steps, as if it had been that one. It is copied between two of that worker's steps: moments and
what belongs to them, such as a projection or a basis, are of one moment.
"""

from __future__ import annotations

import time

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import Refused
from mlxhog.arena.workers import Entry, Phase, State
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.machine import machine, verdicts
from mlxhog.machine.verdicts import Verdicts
from mlxhog.machine.workers import GPU_BACKENDS, joining_workers
from mlxhog.optim import updates
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.report.monitor import Monitor
from mlxhog.training import kernel_choice
from mlxhog.training.plan import Plan
from mlxhog.training.session import Session

COPY_S = 1.0  # how long to try to copy state while its owner does not write it


class Elastic:
    """The workers of one run, as joining and leaving changes them."""

    def __init__(self, session: Session, plan: Plan, monitor: Monitor) -> None:
        """Prepare; the run has the workers of its plan."""
        self._session, self._plan, self._monitor = session, plan, monitor
        self._supervisor, self._arena = session.supervisor, session.arena

    def free_slots(self) -> int:
        """How many workers could join now."""
        return 0 if self._plan.strategy.fixed else len(self._supervisor.free_slots())

    def join(self, workers: str, threads: int | None) -> str:
        """Let workers begin, all that are asked for or none; says what the user should know.

        Args:
            workers: a number or backends, as `--workers` takes them.
            threads: of each; None shares the cores.

        Raises:
            Refused: they cannot join; nothing has changed.
        """
        self._check_elastic()
        plan = self._plan
        free, present = self._supervisor.free_slots(), len(self._supervisor.seats)
        try:
            specs = joining_workers(
                workers,
                threads or plan.config.threads,
                machine=machine.here(),
                present=present,
                free=len(free),
            )
            record, backends = verdicts.load(), [spec.backend for spec in specs]
            self._check_record(backends)
            self._check_writers(backends, record)
            plan.memory.check_joined(plan.arena_bytes, plan.worker_bytes, present + len(specs))
            kernels = kernel_choice.choose_kernels(plan.config, backends, record)
        except (ConfigError, EnvironmentLacks) as error:
            raise Refused(str(error), error.exit_code) from error
        for slot, spec, form in zip(free, specs, kernels.of_workers, strict=False):
            inherit(self._arena, slot, plan.private_state)
            self._session.add_worker(slot, spec, form)
            self._monitor.workers[slot] = spec
        names = [
            f"worker {slot} ({spec.backend}, {spec.threads} thread{'s' * (spec.threads > 1)})"
            for slot, spec in zip(free, specs, strict=False)
        ]
        rest = len(free) - len(specs)
        return (
            f"{', '.join(names)} join{'s' * (len(names) == 1)} as soon as its framework is loaded; "
            f"{rest} slot{'s' * (rest != 1)} free"
        )

    def leave(self, slot: int | None) -> str:
        """Let a worker finish its step and go; says which.

        Args:
            slot: of the worker; None is the one that has joined last.

        Raises:
            Refused: it cannot leave, or there is no such worker; nothing has changed.
        """
        self._check_elastic()
        staying = [seat for seat in self._supervisor.seats if seat.leaving_s is None]
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
        if RESIDUAL in self._plan.private_state:
            raise Refused(
                f"worker {slot} cannot leave: what it has not written yet (error_feedback) would "
                "be lost"
            )
        backend = self._monitor.workers[slot].backend
        self._supervisor.leave(slot)
        return f"worker {slot} ({backend}) finishes its step and leaves"

    def _check_elastic(self) -> None:
        if why := self._plan.strategy.fixed:
            raise Refused(
                f"the workers of this run are fixed: {why}; workers join and leave with strategy "
                "hogwild: --strategy hogwild --max-workers N, for a new run or with --resume"
            )

    def _check_record(self, backends: list[str]) -> None:
        """Refuse workers that a record cannot tell of.

        Raises:
            ConfigError: the run is recorded, and there is one.
        """
        if self._plan.config.determinism != "record":
            return
        if self._plan.private_state:
            raise ConfigError(
                "no worker can join this recorded run: it would begin with another worker's "
                "moments, copied while that trains; record with moments of all workers "
                "(--moments shared), or begin with all workers"
            )
        if on_gpu := [backend for backend in backends if backend in GPU_BACKENDS]:
            raise ConfigError(f"{on_gpu[0]} cannot join a recorded run: only CPUs repeat")

    def _check_writers(self, backends: list[str], record: Verdicts) -> None:
        """Refuse workers beside which the run would have to write in another way.

        Raises:
            ConfigError, EnvironmentLacks: it would have to.
        """
        plan = self._plan
        together = [*(seat.spec.backend for seat in self._supervisor.seats), *backends]
        writers = kernel_choice.choose_writers(plan.config, together, record)
        if (writers.gpu_write, writers.write) != (plan.writers.gpu_write, plan.writers.write):
            raise ConfigError(
                f"{', '.join(backends)} cannot join: the run writes with "
                f"gpu_write={plan.writers.gpu_write} and write={plan.writers.write}, but beside "
                f"it that would have to be {writers.gpu_write} and {writers.write}; start a run "
                "with all of them"
            )
        on_gpu = sum(backend in GPU_BACKENDS for backend in together)
        if on_gpu > plan.gpu_share.workers:
            raise ConfigError(
                f"the GPU's memory is divided among {plan.gpu_share.workers} worker"
                f"{'s' * (plan.gpu_share.workers > 1)} of this run, so no other can join on it; "
                "start a run with more of them"
            )


def inherit(arena: Arena, slot: int, private: tuple[str, ...]) -> None:
    """Give a free slot the optimizer state of the worker that has taken most steps.

    What a worker has yet to write (error feedback) stays its own.

    Concurrency: that worker may be training. Its state is copied while it does not write; where it
    always does, the copy may hold parts of two of its steps.
    """
    workers = [one for one in arena.workers if one.state != State.FREE and one.slot != slot]
    source, heir = max(workers, key=lambda one: one.opt_step), arena.workers.entry(slot)
    kinds = [kind for kind in private if kind != RESIDUAL]
    end_ns = monotonic_ns() + int(COPY_S * 1e9)
    while True:
        before = _moment(source)
        for kind in kinds:
            updates.snapshot(
                arena.segment(f"{kind}.{slot}"), arena.segment(f"{kind}.{source.slot}")
            )
        is_whole = before is not None and before == _moment(source)
        if is_whole or not kinds or monotonic_ns() >= end_ns:
            break
        time.sleep(0.001)
    heir.opt_step = source.opt_step
    if RESIDUAL in private:
        arena.segment(f"{RESIDUAL}.{slot}").fill(0.0)


def _moment(entry: Entry) -> int | None:
    """The steps that a worker's state has seen; None while it may be writing it."""
    return None if entry.phase == Phase.APPLY else entry.opt_step
