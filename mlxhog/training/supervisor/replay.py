"""The supervisor's part of a recorded run, and its replay in the recorded access order.

Workers append to their own logs (`mlxhog/strategies/recorded.py`). If one is killed, the supervisor
logs its progress (`recorded.settle`) before any process may touch the stripe that it held.

In a replay every worker has its own process.

Each process computes its gradients when it can and waits for its turn before every access to shared
parameters, as `metal/native/updates/turns.h` says. So the replay runs in parallel, in any order
that gives every stripe the same history, and ends with the same bits. It checks the norm of each
gradient, the SHA-256 of the weights that some steps read, and that of the final weights and
optimizer state.
"""

import hashlib
import itertools
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from typing import Any

from mlxhog.arena import Arena, Layout, control, event_log
from mlxhog.arena.child import Child, Failed, Lane
from mlxhog.arena.event_log import Begin, End, Header, RecordedStep, Torn
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import WorkerPhase
from mlxhog.base import machine, plain_json
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.paths import quoted_paths
from mlxhog.base.reading import MAX_BYTES
from mlxhog.base.workers import MAX_WORKERS, WorkerSpec
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import settled
from mlxhog.display.views import Tell
from mlxhog.errors import CheckpointError, DataError, EnvironmentLacks, RunError, WorkerFailed
from mlxhog.optim import updates
from mlxhog.strategies import Lease, recorded
from mlxhog.strategies.recorded import Mismatch, ReplayedWorker
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.values import Job, TextPlan
from mlxhog.training.supervisor import arena_state
from mlxhog.training.worker import loop as worker
from mlxhog.training.worker.steps import Steps

CONFIG = "config.yaml"
"""The recorded configuration, beside the logs; a resume replaces that in the run's folder."""

QUIET: dict[str, Any] = {
    "determinism": "replay", "resume": None, **settled(TrainConfig, live="off"),
}  # fmt: skip


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay."""

    run: str
    workers: tuple[str, ...]  # backends, by the slots of the initial workers
    steps: int  # replayed, torn ones included
    deaths: int
    hashes: int  # compared, the final ones included
    difference: str | None  # the first one, in words
    sha256: str  # of the final weights, as recorded
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "equal": self.difference is None}


@dataclass
class Process:
    """One recorded process: its place in the log of its slot, and its number of steps."""

    slot: int
    number: int  # processes in this slot before it
    begin: Begin
    first: int  # steps in this slot before its own
    steps: int = 0  # its own, torn ones included
    hashes: int = 0  # steps of its own with a SHA-256

    def __str__(self) -> str:
        """Its name in messages."""
        return f"worker {self.slot} ({self.begin.backend})"

    def records(self, directory: Path, max_bytes: int) -> Iterator[RecordedStep | Torn]:
        """Its steps, from the log of a run."""
        log = event_log.read(event_log.worker_path(directory, self.slot), max_bytes)
        steps = (record for record in log if isinstance(record, RecordedStep | Torn))
        return itertools.islice(steps, self.first, self.first + self.steps)


def processes(directory: Path, slot: int, max_bytes: int = MAX_BYTES) -> list[Process]:
    """The processes that a slot had, in order; none if no worker had it. See `event_log.read`."""
    path, every, total = event_log.worker_path(directory, slot), list[Process](), 0
    for record in event_log.read(path, max_bytes) if path.exists() else ():
        if isinstance(record, Begin):
            every.append(Process(slot, len(every), record, total))
        elif not every:
            raise RunError(
                f"the log {path} begins with a step, and not with its worker; copy the run's "
                "folder again"
            )
        else:
            total += 1
            every[-1].steps += 1
            every[-1].hashes += isinstance(record, RecordedStep) and bool(record.sha256)
    return every


def repeat(lane: Lane, job: Job, process: Process) -> str | None:
    """In a child: repeat the steps of a process; returns the first difference."""
    arena, entry = lane.arena, lane.arena.workers.entry(job.slot)
    gradients = worker.start_gradients(job, arena, entry)
    context = worker.make_context(job, arena, entry, gradients.backend)
    ring = control.Ring(arena.segment(f"ring.{job.slot}"))
    repeated = Steps(job, context, ring, gradients).strategy
    assert isinstance(repeated, ReplayedWorker)
    max_bytes = arena.layout.total_bytes  # a record has parts of the arena
    for k, record in enumerate(process.records(job.run_dir, max_bytes), process.first + 1):
        entry.beat(WorkerPhase.COMPUTE)
        numbers = record.numbers
        try:
            if repeated.repeat_read(record):
                lease = Lease(numbers.epoch, numbers.ticket)
                _, grads = gradients.of(gradients.micro_batches(lease))
                repeated.repeat_write(record, grads)
        except Mismatch as difference:
            return (
                f"{process}, its step {k} (batch {numbers.epoch}.{numbers.ticket}, read after "
                f"update {numbers.version_read}): {difference}"
            )
    return None


# -- the record of the supervisor -----------------------------------------------------------------


def begin_record(plan: TextPlan, directory: Path, arena: Arena) -> None:
    """Write the header of a run whose arena is filled and whose workers have not started."""
    path = directory / event_log.FOLDER / CONFIG
    with disk_errors(f"writing {path}"):
        subfolder(directory, event_log.FOLDER)
        replace_file(path, plan.config.to_yaml().encode())
    pairs = zip(plan.workers, plan.kernels, strict=True)
    header = event_log.Header(
        workers=tuple(event_log.Begin(one.backend, one.threads, form) for one, form in pairs),
        slots=plan.strategy.slots,
        layout_sha256=layout_digest(arena.layout),
        tokens_sha256=plan.data.train.digest,
        versions=versions({worker.backend for worker in plan.workers}),
        initial_sha256=digests(arena),
    )
    event_log.store(directory, header)


def end_record(directory: Path, arena: Arena, report: Tell) -> None:
    """Write the end of a run, after that of its workers; reports a failure."""
    try:
        event_log.store(directory, event_log.End(digests(arena)))
    except EnvironmentLacks as full:
        report(f"the record has no end, so the run cannot be replayed: {full}")


def digests(arena: Arena) -> dict[str, str]:
    """SHA-256 of the weights and of every segment of optimizer state, by name."""
    layout = arena.layout
    names = [name for name in recorded.SHARED if name in layout.segments]
    for slot in range(1, layout.max_workers + 1):
        names += recorded.private_names(layout, slot)
    arrays = {name: arena.segment(name) for name in names}
    arrays["params"] = arrays["params"][: layout.probe.offset]
    return {name: hashlib.sha256(values.data).hexdigest() for name, values in arrays.items()}


def differing(arena: Arena, recorded: Mapping[str, str]) -> list[str]:
    """Names of the recorded digests that differ from those of an arena."""
    here = digests(arena)
    return [name for name, was in recorded.items() if here.get(name) != was]


def layout_digest(layout: Layout) -> str:
    """SHA-256 of the places of the parameters and the ranges of the locks."""
    slots = [vars(slot) for slot in layout.slots.values()]
    facts = [slots, layout.n_floats, layout.n_lock_words, layout.max_workers, updates.STRIPE]
    return hashlib.sha256(plain_json.dumps(facts)).hexdigest()


def versions(backends: set[str]) -> dict[str, str]:
    """What bits depend on: Python, NumPy, mlxhog, the frameworks of these backends, the machine."""
    names = ["mlxhog", "numpy", *sorted({backend.partition(":")[0] for backend in backends})]
    installed = [name for name in names if find_spec(name) is not None]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in installed},
        "machine": machine.here().name,
        "processor": machine.chip_name(),
    }


# -- the replay ----------------------------------------------------------------------------------


def replay(run: Run, *, ignore_versions: bool = False) -> ReplayResult:
    """Replay a recorded run and compare.

    With `ignore_versions` also under other versions, or on another processor.

    Raises:
        RunError: the run was not recorded, has not ended, or its log is cut or damaged.
        EnvironmentLacks: a backend is missing, or other versions are installed.
        CheckpointError: the log is from another layout, or begins with other weights.
        DataError: the run was trained on other text.
        WorkerFailed: a process of the replay died.
    """
    began, directory = time.monotonic(), run.directory
    header = event_log.load(Header, directory)
    if not ignore_versions:
        _check_versions(header.versions, {worker.backend for worker in header.workers})
    plan, end = _plan(header, run), event_log.load(End, directory)
    n_slots = min(header.slots, MAX_WORKERS)
    max_bytes = plan.layout.total_bytes
    slots = [processes(directory, slot, max_bytes) for slot in range(1, n_slots + 1)]
    every = [process for slot in slots for process in slot]
    with ExitStack() as stack:
        arena = stack.enter_context(Arena.create(plan.layout, write=plan.writers.write))
        arena_state.load(plan, arena, Ledger(arena))
        if differ := differing(arena, header.initial_sha256):
            raise CheckpointError(
                f"the run began with other values of {', '.join(differ)} than this mlxhog and "
                "NumPy make of its seed; replay it with the versions that recorded it"
            )
        difference = _follow(slots, plan, arena, directory) or _compare(arena, end)
    return ReplayResult(
        run=str(directory),
        workers=tuple(worker.backend for worker in header.workers),
        steps=sum(one.steps for one in every),
        deaths=sum(one.number > 0 for one in every),
        hashes=sum(one.hashes for one in every) + len(end.sha256),
        difference=difference,
        sha256=end.sha256.get("params", ""),
        seconds=time.monotonic() - began,
    )


def _check_versions(recorded: Mapping[str, str], backends: set[str]) -> None:
    here = versions(backends)
    differ = [
        f"{name} {was} (here {here.get(name, 'missing')})"
        for name, was in recorded.items()
        if here.get(name) != was
    ]
    if differ:
        raise EnvironmentLacks(
            f"the run was recorded with {', '.join(differ)}; other versions and processors round "
            "in other ways, so replay it there, or try it here with --ignore-versions"
        )


def _plan(header: Header, run: Run) -> TextPlan:
    """The plan of a recorded run, without any choice by this machine."""
    config = replace(
        train_config([run.options(path=run.directory / event_log.FOLDER / CONFIG)]),
        **QUIET,
        workers=",".join(worker.backend for worker in header.workers),
        max_workers=header.slots,
    )
    plan = replace(
        make_plan(config),
        workers=tuple(WorkerSpec(one.backend, one.threads) for one in header.workers),
        kernels=tuple(one.kernels for one in header.workers),
    )
    if layout_digest(plan.layout) != header.layout_sha256:
        raise CheckpointError(
            f"the log of {run.directory} is from another layout of the parameters than model "
            f"{config.model} has here; replay it with the model file and version that recorded it"
        )
    digest = plan.data.train.digest
    if digest != header.tokens_sha256:
        raise DataError(
            f"the run was trained on tokens with digest {header.tokens_sha256[:12]}, "
            f"{quoted_paths(config.data)} gives {digest[:12]} now; put back the text that it was "
            "recorded with"
        )
    return plan


def _follow(
    slots: Sequence[Sequence[Process]], plan: TextPlan, arena: Arena, directory: Path
) -> str | None:
    """Repeat all processes, those of a slot one after the other; returns the first difference."""
    waiting = [[process for process in slot if process.steps] for slot in slots]
    running: dict[int, tuple[Process, Child]] = {}
    try:
        while True:
            for slot in waiting:
                if slot and slot[0].slot not in running:
                    process = slot.pop(0)
                    running[process.slot] = process, _start(process, plan, arena, directory)
            if not running:
                return None
            ready = connection.wait([one.pipe for _, one in running.values()])
            for process, child in [one for one in running.values() if one[1].pipe in ready]:
                try:
                    difference: str | None = child.await_result(0.0)
                except Failed as failure:
                    raise WorkerFailed(f"{process} of the replay: {failure}") from None
                if difference is not None:
                    return difference
                child.close()
                del running[process.slot]
    finally:
        for _, child in running.values():
            child.close()


def _start(process: Process, plan: TextPlan, arena: Arena, directory: Path) -> Child:
    slot, kernels = process.slot, process.begin.kernels
    spec = WorkerSpec(process.begin.backend, process.begin.threads)
    while len(plan.workers) < slot - 1:  # slots that others have joined in
        plan = plan.with_worker(len(plan.workers) + 1, spec, kernels)
    plan = plan.with_worker(slot, spec, kernels)
    job = Job(plan=plan, handle=None, slot=slot, run_dir=directory, budget=plan.budget)
    texts = {"texts": (plan.data.train, plan.data.val)}  # the job's, which may be removed meanwhile
    child = Child(arena, slot, threads=spec.threads, store=texts)
    child.start(repeat, job, process)
    return child


def _compare(arena: Arena, end: End) -> str | None:
    """Compare the arena with the end of the run; returns the differences in words."""
    if not (differ := differing(arena, end.sha256)):
        return None
    return f"the end: {', '.join(differ)} differ from the record"
