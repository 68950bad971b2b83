"""The replay of a recorded run: every worker in its own process, in the recorded access order.

Each process computes its gradients when it can and waits for its turn before every access to shared
parameters, as `metal/native/updates/turns.h` says. So the replay runs in parallel, in any order
that gives every stripe the same history, and ends with the same bits. It checks the weights that
each step reads, stripe by stripe, the norm of each gradient, and the final SHA-256 of weights and
optimizer state.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.arena import Arena, control, event_log
from mlxhog.arena.event_log import Begin, Frame, Kind, Step, Torn
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.worker_pool import WorkerProcess
from mlxhog.arena.workers import Phase
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.contradictions import choosing
from mlxhog.data.encodings import words
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import CheckpointError, DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.machine.workers import WorkerSpec
from mlxhog.optim import updates
from mlxhog.strategies import Lease, access_order
from mlxhog.strategies.recorded import Mismatch, ReplayedWorker
from mlxhog.training import checkpoints, recording, worker
from mlxhog.training.job import Job
from mlxhog.training.plan import Plan, make_plan
from mlxhog.training.steps import Steps

POLL_S = 0.5
STUCK_S = 5.0
"""How long all processes may wait for turns, while none computes, before the replay is stuck."""

QUIET: dict[str, Any] = {
    "determinism": "replay", "resume": None, **choosing(TrainConfig, live="off"),
}  # fmt: skip


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay.

    Attributes:
        run: folder of the run.
        workers: backends, by the slots of the initial workers.
        steps: number of replayed steps, torn ones included.
        deaths: of workers in the record.
        hashes: number of compared hashes, the final ones included.
        difference: the first difference, in words; None if there is none.
        sha256: of the final weights, as recorded.
        seconds: duration of the replay.
    """

    run: str
    workers: tuple[str, ...]
    steps: int
    deaths: int
    hashes: int
    difference: str | None
    sha256: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "equal": self.difference is None}


@dataclass(frozen=True)
class ProcessLog:
    """The log of one process in a slot.

    Attributes:
        slot: of the worker table.
        number: processes in this slot before it.
        begin: its backend, threads and kernels.
        first: its first step, counted in the slot.
        frames: records of its steps, packed as they are in the log.
    """

    slot: int
    number: int
    begin: Begin
    first: int
    frames: tuple[Frame, ...]

    def __str__(self) -> str:
        """The name of the process in messages."""
        return f"worker {self.slot} ({self.begin.backend})"


# -- one process ----------------------------------------------------------------------------------


def main(pipe: Connection, job: Job, directory: Path, number: int) -> None:
    """Entry point of a process that replays one log; it reports the result through the pipe."""
    with (job.run_dir / f"worker-{job.slot}.log").open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    part = parts(directory, job.slot)[number]
    arena = Arena.from_handle(job.handle, write=job.setup.writers.write)
    entry = arena.workers.entry(job.slot)
    gradients = worker.start_gradients(job, arena, entry)
    context = worker.make_context(job, arena, entry, gradients.backend)
    steps = Steps(job, context, control.Ring(arena.segment(f"ring.{job.slot}")), gradients)
    repeated, limits = steps.strategy, access_order.limits(arena.layout)
    assert isinstance(repeated, ReplayedWorker)
    for k, frame in enumerate(part.frames):
        entry.beat(Phase.COMPUTE)
        record = frame.record(limits)
        assert isinstance(record, Step | Torn)
        try:
            if repeated.repeat_read(record):
                grads = gradients.gradient(Lease(record.numbers.epoch, record.numbers.ticket))
                repeated.repeat_write(record, grads)
        except Mismatch as difference:
            pipe.send((k, str(difference)))
            return
    pipe.send((len(part.frames), None))
    context.backend.close()


def parts(directory: Path, slot: int) -> list[ProcessLog]:
    """The logs of the processes in one slot, in order.

    Raises:
        RunError: the log is cut or damaged.
    """
    path = event_log.worker_path(directory, slot)
    begins: list[Begin] = []
    by_process: list[list[Frame]] = []
    for frame in event_log.frames(path):
        if frame.kind == Kind.BEGIN:
            begin = frame.record()
            assert isinstance(begin, Begin)
            begins.append(begin)
            by_process.append([])
        elif not begins:
            raise RunError(f"the log {path} does not begin with a worker; it is not whole")
        elif frame.kind != Kind.DIED:
            by_process[-1].append(frame)
    processes, first = [], 0
    for number, (begin, steps) in enumerate(zip(begins, by_process, strict=True)):
        processes.append(ProcessLog(slot, number, begin, first, tuple(steps)))
        first += len(steps)
    return processes


# -- the run --------------------------------------------------------------------------------------


def replay(run: Run, *, anyway: bool = False) -> ReplayResult:
    """Replay a recorded run and compare.

    Args:
        run: its folder.
        anyway: replay despite other versions or another processor.

    Raises:
        RunError: the run was not recorded, has not ended, or its log is cut or damaged.
        EnvironmentLacks: a backend is missing, or other versions are installed.
        CheckpointError: the log is from another layout, or begins with other weights.
        DataError: the run was trained on other text.
        WorkerFailed: a process of the replay died.
    """
    began_ns = monotonic_ns()
    recorded = read(run, anyway=anyway)
    header, end, logs, plan = recorded.header, recorded.end, recorded.logs, recorded.plan
    with ExitStack() as stack:
        logs_of_processes = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replaying = _Replay(plan, header, run.directory, logs_of_processes, stack)
        difference = replaying.follow(logs) or replaying.compare(end)
    frames = [frame for log in logs for part in log for frame in part.frames]
    return ReplayResult(
        run=str(run.directory),
        workers=tuple(worker.backend for worker in header.workers),
        steps=len(frames),
        deaths=sum(max(0, len(log) - 1) for log in logs),
        hashes=sum(frame.is_hashed for frame in frames) + len(end.sha256),
        difference=difference,
        sha256=end.sha256["params"],
        seconds=(monotonic_ns() - began_ns) / 1e9,
    )


@dataclass(frozen=True)
class Recording:
    """A recorded run, read and checked.

    Attributes:
        header: its set-up.
        end: its final state.
        logs: of the processes in each slot.
        plan: of the recorded run.
    """

    header: recording.RecordHeader
    end: recording.RecordEnd
    logs: tuple[list[ProcessLog], ...]
    plan: Plan


def read(run: Run, *, anyway: bool = False) -> Recording:
    """Read and check the record of a run; raises the errors of `replay`."""
    header = recording.RecordHeader.read(run.directory)
    logs = tuple(
        parts(run.directory, slot)
        for slot in range(1, header.slots + 1)
        if event_log.worker_path(run.directory, slot).exists()
    )
    if not anyway:
        _check_versions(header, logs)
    plan = _plan(header, run)
    limits = access_order.limits(plan.layout)
    for part in (part for log in logs for part in log):
        recording.check_worker(part.begin)
        for frame in part.frames:
            frame.record(limits)
    end = recording.RecordEnd.read(run.directory, limits.stripes)
    return Recording(header, end, logs, plan)


def _check_versions(header: recording.RecordHeader, logs: Sequence[Sequence[ProcessLog]]) -> None:
    backends = {part.begin.backend for log in logs for part in log}
    try:
        here = recording.versions(backends)
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            f"the run has workers {', '.join(sorted(backends))}, and {error.name} is not "
            "installed here; install it, or replay where it is"
        ) from error
    differ = [
        f"{name} {was} (here {here.get(name, 'missing')})"
        for name, was in header.versions.items()
        if here.get(name) != was
    ]
    machine, was = recording.here(), header.machine
    if machine["processor"] != was["processor"] or machine["name"] != was["name"]:
        differ.append(f"{was['name']}, {was['processor']} (here {machine['processor']})")
    if differ:
        raise EnvironmentLacks(
            f"the run was recorded with {', '.join(differ)}; other versions and processors round "
            "in other ways, so replay it there, or try it here with --anyway"
        )


def _plan(header: recording.RecordHeader, run: Run) -> Plan:
    """The plan of a recorded run, without any choice by this machine.

    Raises:
        CheckpointError, DataError: the model or the text is another.
    """
    stored = run.options(path=run.directory / event_log.FOLDER / recording.CONFIG)
    recorded = train_config([stored])
    config = replace(
        recorded,
        **QUIET,
        workers=",".join(worker.backend for worker in header.workers),
        max_workers=header.slots,
    )
    plan = replace(make_plan(config), workers=header.workers, kernels=header.kernels)
    if recording.layout_digest(plan.layout) != header.layout_sha256:
        raise CheckpointError(
            f"the log of {run.directory} is from another layout of the parameters than model "
            f"{config.model} has here; replay it with the model file and version that recorded it"
        )
    digest = TokenFile.open(plan.data.train).digest
    if digest != header.tokens_sha256:
        raise DataError(
            f"the run was trained on tokens with digest {header.tokens_sha256[:12]}, "
            f"{words(config.data)} gives {digest[:12]} now; put back the text that it was recorded "
            "with"
        )
    return plan


class _Replay:
    """The processes of one replay and their arena."""

    def __init__(
        self,
        plan: Plan,
        header: recording.RecordHeader,
        directory: Path,
        logs: Path,
        stack: ExitStack,
    ) -> None:
        """Create the arena in the initial state of the run.

        Raises:
            CheckpointError: the initial weights are others.
        """
        self._setup, self._directory, self._logs = plan.for_workers(), directory, logs
        self.arena = stack.enter_context(
            Arena.create(plan.layout, write=plan.writers.write, run_id="replay")
        )
        checkpoints.restore(plan, self.arena, Ledger(self.arena))
        initial = recording.digests(self.arena)
        expected = header.initial_sha256.items()
        differ = [name for name, was in expected if initial.get(name) != was]
        if differ:
            raise CheckpointError(
                f"the run began with other values of {', '.join(differ)} than this mlxhog and "
                "NumPy make of its seed; replay it with the versions that recorded it"
            )
        self._budget = plan.budget
        self._running: dict[int, tuple[ProcessLog, WorkerProcess]] = {}
        stack.callback(self._end_all)

    def _end_all(self) -> None:
        for _, process in self._running.values():
            process.close()

    def follow(self, logs: Sequence[Sequence[ProcessLog]]) -> str | None:
        """Replay every log; returns the first difference.

        Raises:
            WorkerFailed: a process died.
        """
        waiting = {log[0].slot: [part for part in log if part.frames] for log in logs if log}
        for slot in waiting:
            self._start_next(waiting, slot)
        quiet: tuple[list[Any], int] = ([], monotonic_ns())
        while self._running:
            ready = connection.wait(
                [x for _, one in self._running.values() for x in (one.pipe, one.process.sentinel)],
                timeout=POLL_S,
            )
            for slot, (part, process) in list(self._running.items()):
                if process.pipe in ready or process.process.sentinel in ready:
                    difference = self._ended(part, process)
                    if difference is not None:
                        return difference
                    del self._running[slot]
                    self._start_next(waiting, slot)
            state = [(slot, access_order.Book(self.arena, slot).last) for slot in self._running]
            all_wait = all(
                access_order.Book(self.arena, slot).waits_for is not None for slot in self._running
            )
            if state != quiet[0] or not all_wait:
                quiet = (state, monotonic_ns())
            elif self._running and monotonic_ns() - quiet[1] > STUCK_S * 1e9:
                return self._stuck()
        return None

    def _start_next(self, waiting: dict[int, list[ProcessLog]], slot: int) -> None:
        if not waiting[slot]:
            return
        part = waiting[slot].pop(0)
        spec = WorkerSpec(part.begin.backend, part.begin.threads)
        setup = self._setup
        while len(setup.workers) < slot - 1:  # slots that others have joined in
            setup = setup.with_worker(len(setup.workers) + 1, spec, part.begin.kernels)
        job = Job(
            setup=setup.with_worker(slot, spec, part.begin.kernels),
            handle=self.arena.handle(),
            slot=slot,
            budget=self._budget,
            step_limit=None,
            run_dir=self._logs,
        )
        process = WorkerProcess(
            main,
            (job, self._directory, part.number),
            name=f"mlxhog-replay-{slot}",
            threads=spec.threads,
            pipe=True,
            arena=self.arena,
            slots=(slot,),
        )
        self._running[slot] = (part, process)

    def _ended(self, part: ProcessLog, process: WorkerProcess) -> str | None:
        try:
            done, difference = process.pipe.recv() if process.pipe.poll(POLL_S) else (0, None)
        except EOFError:
            done, difference = 0, None
        if difference is None and done < len(part.frames):
            death = process.reap(timeout_s=10.0)
            words = (self._logs / f"worker-{part.slot}.log").read_text(errors="replace")
            raise WorkerFailed(f"{part} of the replay died ({death}): {words.strip()[-600:]}")
        process.reap(timeout_s=10.0)
        process.close()
        return None if difference is None else f"{self._name(part, done)}: {difference}"

    @staticmethod
    def _name(part: ProcessLog, index: int) -> str:
        """The name of a step of a worker, with its batch and the version that it read."""
        numbers = part.frames[index].numbers
        return (
            f"{part}, its step {part.first + index + 1} (batch {numbers.epoch}.{numbers.ticket}, "
            f"read after update {numbers.version_read})"
        )

    def _stuck(self) -> str:
        """A message with the turn that each worker waits for, if none can continue."""
        counts, texts = access_order.access_counts(self.arena), []
        for part, _ in self._running.values():
            word = access_order.Book(self.arena, part.slot).waits_for
            if word is not None:
                texts.append(f"{part} waits at stripe or row {word}, access {int(counts[word])}")
        return f"no worker can continue, so the logs do not fit together: {'; '.join(texts)}"

    def compare(self, end: recording.RecordEnd) -> str | None:
        """Compare the arena with the end of the run; returns the differences in words."""
        digests = recording.digests(self.arena)
        differ = [name for name, was in end.sha256.items() if digests.get(name) != was]
        if not differ:
            return None
        text = f"the end: {', '.join(differ)} differ from the record"
        stripes = np.flatnonzero(access_order.stripe_sums(self.arena) != end.sums)
        return f"{text}{self._named(stripes)}"

    def _named(self, stripes: Iterable[int]) -> str:
        for stripe in stripes:
            begin = int(stripe) * updates.STRIPE
            names = access_order.parameters_in(self.arena.layout, begin, begin + updates.STRIPE)
            return f", first in stripe {stripe} ({names})"
        return ""


__all__ = ["ReplayResult", "replay"]
