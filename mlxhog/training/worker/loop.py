"""The loop of a worker: it obeys the supervisor's commands from the first to the last."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from mlxhog import optim, strategies
from mlxhog.arena import Arena, control
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Entry, WorkerPhase, WorkerState
from mlxhog.backends.backend import Backend
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.errors import (
    EnvironmentLacks,
    MetalError,
    ShapeError,
    is_lost_gpu,
    message_of,
    whole_text,
)
from mlxhog.models import families
from mlxhog.optim import metal_steps, muon
from mlxhog.optim.metal_steps import MetalSteps, NotShared
from mlxhog.optim.rule import Orthogonalize
from mlxhog.strategies import prediction
from mlxhog.strategies.context import Context
from mlxhog.training.plan.job import Job, start_backend
from mlxhog.training.worker.background_tasks import BackgroundTasks
from mlxhog.training.worker.steps import Gradients, OverlappedSteps, Steps


def run(pipe: Connection, job: Job) -> None:
    """Work until the supervisor says EXIT; each further job in the pipe has another strategy."""
    assert job.handle is not None, "it is of a spawned process"
    arena = Arena.from_handle(job.handle)
    entry = arena.workers.entry(job.slot)
    entry.beat(WorkerPhase.STARTING)
    gradients = start_gradients(job, arena, entry)
    steps, tasks = _built(job, arena, entry, gradients)
    pipe.send(job.notices)
    entry.state = WorkerState.RUNNING
    n_steps = -1
    while (command := ControlCommand(arena.counters.load("command"))) != ControlCommand.EXIT:
        if entry.state == WorkerState.LEAVING:
            break
        if entry.state == WorkerState.STARTING:  # parked, since the run changes its strategy
            entry.beat(WorkerPhase.STARTING)
            job = pipe.recv()
            arena.lay_out(job.plan.layout)
            steps, tasks = _built(job, arena, entry, gradients)
            entry.state = WorkerState.RUNNING
        if command != ControlCommand.TRAIN or entry.steps != n_steps:  # not in each wait
            entry.rss_bytes, n_steps = resident_bytes(), entry.steps
        if obey(command, steps, tasks):
            continue
        entry.beat(WorkerPhase.IDLE)
        time.sleep(0.002)
    steps.context.settle()
    entry.state = WorkerState.FINISHED
    gradients.backend.close()


def _built(
    job: Job, arena: Arena, entry: Entry, gradients: Gradients
) -> tuple[Steps, BackgroundTasks | None]:
    context = make_context(job, arena, entry, gradients.backend)
    ring = control.Ring(arena.segment(f"ring.{job.slot}"))
    steps = (OverlappedSteps if job.config.overlap else Steps)(job, context, ring, gradients)
    text = job.plan.validation_text
    return steps, None if text is None else BackgroundTasks(job, context, ring, text)


def obey(command: ControlCommand, steps: Steps, tasks: BackgroundTasks | None) -> bool:
    """Obey a command once; returns whether this was a step, so that another may begin at once."""
    # To drain, a worker finishes a round in progress.
    trains = command in (ControlCommand.TRAIN, ControlCommand.DRAIN)
    if not trains:
        steps.context.settle()
    if tasks is not None and command in (ControlCommand.TRAIN, ControlCommand.SAMPLE):
        tasks.serve()
    if trains:
        steps.step()
    elif tasks is not None and command == ControlCommand.EVALUATE:
        tasks.evaluate_end()
    return trains


def start_gradients(job: Job, arena: Arena, entry: Entry) -> Gradients:
    """Start the framework, and compute a first, unused gradient.

    If the Metal kernels that `auto` chose cannot compute this model, eager operators do: a head may
    be wider than a group of threads on this GPU.
    """

    def beat() -> None:
        entry.beat(WorkerPhase.STARTING)

    gradients = Gradients(job, arena, entry, start_backend(job, arena, job.kernels, beat))
    try:
        gradients.warm_up()
    except (MetalError, ShapeError, RuntimeError, ValueError) as error:
        if job.kernels != "metal" or job.config.kernels == "metal" or is_lost_gpu(error):
            raise
        job.leave_notice(
            f"worker {job.slot} ({job.spec.backend}) uses eager operators only: its Metal kernels "
            f"do not compute this model ({message_of(error)})",
            whole_text(error),
        )
        gradients.backend.close()
        gradients = Gradients(job, arena, entry, start_backend(job, arena, "eager", beat))
        gradients.warm_up()
    return gradients


def make_context(job: Job, arena: Arena, entry: Entry, backend: Backend) -> Context:
    """Build the optimizer and the context for a worker of the job's strategy."""
    plan, strategy = job.plan, job.plan.strategy
    optimizer = strategies.build_optimizer(
        plan.config,
        families.hidden_matrices(plan.model),
        groups=families.rate_groups(plan.model),
        threads=job.step_threads,
        tokens_per_step=strategy.tokens_per_step,
    )
    return Context(
        arena=arena,
        ledger=Ledger(arena),
        entry=entry,
        slot=job.slot,
        owner=entry.incarnation,
        strategy=strategy,
        backend=backend,
        optimizer=optimizer,
        metal=gpu_steps(job, arena),
        schedule=plan.schedule(job.budget.step_share(strategy.steps_of)),
        budget=job.budget,
        step_limit=job.step_limit,
        decay=plan.decay,
        model=plan.model,
        run_dir=job.run_dir,
        orthogonalize=orthogonalize_of_device(job, backend),
        threads=job.step_threads,
    )


def orthogonalize_of_device(job: Job, backend: Backend) -> Orthogonalize | None:
    """The backend's orthogonalization, compared with the CPU's; None if the CPU orthogonalizes."""
    name, choice = job.spec.backend, optim.optimizer_of(job.config)
    on_gpu = name in GPU_BACKENDS and not job.config.overlap  # then it computes the next gradient
    if not choice.orthogonalizes_on_worker(on_gpu=on_gpu):
        return None
    far = muon.distance(backend.orthogonalize)
    if far <= muon.MAX_DISTANCE:
        return backend.orthogonalize
    reason = (
        f"directions of {name} differ from the CPU's by {far:.1g} of the largest element, "
        f"expected at most {muon.MAX_DISTANCE:g}, as if its matmuls kept fewer bits than "
        "float32"
    )
    if choice.orthogonalizes_on_worker(on_gpu=False):  # not by auto
        raise EnvironmentLacks(
            f"orthogonalization_device=worker: {reason}; set MLX_ENABLE_TF32=0 for MLX, or take "
            "--orthogonalization-device cpu"
        )
    job.leave_notice(f"worker {job.slot} orthogonalizes on the CPU: {reason}")
    return None


def resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes.

    On Linux `ru_maxrss` begins with the parent's, even after an exec; VmHWM, which gVisor lacks,
    does not.
    """
    with contextlib.suppress(OSError):
        if own := re.search(rb"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes()):
            return int(own[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_steps(job: Job, arena: Arena) -> MetalSteps | None:
    """The Metal kernels that apply this worker's updates; None if native code does."""
    if (engine := job.plan.writers.engine(job.spec.backend)) is None:
        return None
    try:
        return metal_steps.steps_of_worker(
            arena,
            job.plan.decay,
            engine=engine,
            threads=job.spec.threads,
            slot=job.slot,
            recorded=tuple(prediction.segments(job.plan.strategy.run, job.plan.strategy.slots)),
        )
    except NotShared as why:
        job.leave_notice(
            f"worker {job.slot} ({job.spec.backend}) lets the CPU apply its updates, not the GPU: "
            f"{why}"
        )
        return None
