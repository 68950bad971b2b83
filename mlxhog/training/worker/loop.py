"""A worker: it follows the supervisor's commands from the first to the last, step by step."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from mlxhog import backends, optim, strategies
from mlxhog.arena import Arena, control
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Entry, WorkerPhase, WorkerState
from mlxhog.backends.backend import Backend
from mlxhog.base import float32
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.errors import (
    EnvironmentLacks,
    MetalError,
    ShapeError,
    is_lost_gpu,
    message_of,
    one_line,
    whole_text,
)
from mlxhog.models import families
from mlxhog.optim import metal_steps, muon
from mlxhog.optim.gradients import Float32
from mlxhog.optim.metal_steps import MetalSteps, NotShared
from mlxhog.optim.rule import Orthogonalize
from mlxhog.strategies import prediction
from mlxhog.strategies.context import Context
from mlxhog.training.plan.values import BackgroundTasks, Job
from mlxhog.training.worker.steps import Gradients, OverlappedSteps, Steps


def run(pipe: Connection, job: Job) -> None:
    """Work until the supervisor says EXIT; each further job in the pipe has another strategy."""
    assert job.handle is not None, "it is of a spawned process"
    arena = Arena.from_handle(job.handle)
    entry = arena.workers.entry(job.slot)
    entry.beat(WorkerPhase.STARTING)
    gradients = start_gradients(job, arena, entry)
    steps, background_tasks = _built(job, arena, entry, gradients)
    pipe.send(job.notices)
    entry.state = WorkerState.RUNNING
    while (command := ControlCommand(arena.counters.load("command"))) != ControlCommand.EXIT:
        if entry.state == WorkerState.LEAVING:
            break
        if entry.state == WorkerState.STARTING:  # parked, since the run changes its strategy
            entry.beat(WorkerPhase.STARTING)
            job = pipe.recv()
            arena.lay_out(job.plan.layout)
            steps, background_tasks = _built(job, arena, entry, gradients)
            entry.state = WorkerState.RUNNING
        entry.rss_bytes = resident_bytes()
        if follow(command, steps, background_tasks):
            continue
        entry.beat(WorkerPhase.IDLE)
        time.sleep(0.002)
    steps.context.settle()
    entry.state = WorkerState.FINISHED
    gradients.backend.close()


def _built(
    job: Job, arena: Arena, entry: Entry, gradients: Gradients
) -> tuple[Steps, BackgroundTasks]:
    context = make_context(job, arena, entry, gradients.backend)
    ring = control.Ring(arena.segment(f"ring.{job.slot}"))
    steps = (OverlappedSteps if job.config.overlap else Steps)(job, context, ring, gradients)
    return steps, job.plan.background_tasks(job, context, ring)


def follow(command: ControlCommand, steps: Steps, background_tasks: BackgroundTasks) -> bool:
    """Follow a command; returns whether this was a step, so that another may follow at once."""
    trains = command in (
        ControlCommand.TRAIN,
        ControlCommand.DRAIN,
    )  # at rest it finishes a round in progress
    if not trains:
        steps.context.settle()
    if command in (ControlCommand.TRAIN, ControlCommand.SAMPLE):
        background_tasks.serve()
    if trains:
        steps.step()
    elif command == ControlCommand.EVALUATE:
        background_tasks.evaluate_rest()
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


def start_backend(
    job: Job, arena: Arena | None, kernels: str, beat: Callable[[], object] = lambda: None
) -> Backend:
    """Start the framework with a form of its operators, and lay the model over its memory.

    Without an arena the model reads a copy of the parameters, as for measurements. The first start
    on a Mac can take minutes, so `beat` is called after the import, after each check of a kernel
    and at the end.
    """
    if job.config.determinism != "none":
        float32.disable_tf32()
    backend = backends.create(
        job.spec.backend,
        threads=job.compute_threads,
        kernels=kernels,
        share=job.gpu_share,
        compute_dtype=job.config.compute_dtype,
    )
    beat()
    if kernels == "metal":
        check_kernels(job, backend, beat)
    live = None if arena is None else live_params(job, arena)
    backend.bind(job.plan.model, job.plan.layout, live, job.plan.sampled)
    beat()
    return backend


def check_kernels(job: Job, backend: Backend, beat: Callable[[], object] = lambda: None) -> None:
    """Let a worker check its Metal kernels; `auto` replaces those with a fault."""
    name, requested = job.spec.backend, job.config.kernels == "metal"
    faults = {} if requested and not job.config.safety_checks else backend.check_kernels(beat)
    if not faults:
        return
    summary = "; ".join(f"{operator}: {one_line(fault)}" for operator, fault in faults.items())
    texts = [f"{operator}: {fault}" for operator, fault in faults.items()]
    if requested:
        job.log_lines(*texts)
        raise EnvironmentLacks(
            f"kernels=metal: on {name} Metal kernels differ from the eager operators ({summary}); "
            "use --kernels auto, which replaces them, or insist with --no-safety-checks"
        )
    job.leave_notice(
        f"worker {job.slot} ({name}) uses the eager {name.partition(':')[0]} operators "
        f"{', '.join(faults)}, whose Metal kernels failed their check ({summary})",
        *texts,
    )


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
        schedule=plan.schedule(job.budget.step_share(strategy.tokens_per_step)),
        budget=job.budget,
        step_limit=job.step_limit,
        decay=plan.decay,
        model=plan.model,
        run_dir=job.run_dir,
        orthogonalize=polar_of_device(job, backend),
        threads=job.step_threads,
    )


def polar_of_device(job: Job, backend: Backend) -> Orthogonalize | None:
    """The backend's orthogonalisation, compared with the CPU's; None if the CPU orthogonalises."""
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
    job.leave_notice(f"worker {job.slot} orthogonalises on the CPU: {reason}")
    return None


def resident_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- unified memory ------------------------------------------------------------------------------


def live_params(job: Job, arena: Arena) -> Float32 | None:
    """The shared parameters if this worker computes with them directly; None for a snapshot.

    On a CPU they are ordinary memory.
    """
    if job.config.read != "live":
        return None
    backend = job.spec.backend
    if backend == "mlx:gpu":
        try:
            metal_steps.check_live_reads(arena, job.slot)
        except NotShared as why:
            notice = f"worker {job.slot} ({backend}) takes snapshots, not live reads: {why}"
            job.leave_notice(notice)
            return None
    return arena.params


def gpu_steps(job: Job, arena: Arena) -> MetalSteps | None:
    """The Metal kernels that add this worker's steps; None if native code adds them."""
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
            f"worker {job.slot} ({job.spec.backend}) lets the CPU add its steps, not the GPU: {why}"
        )
        return None
