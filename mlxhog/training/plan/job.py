"""The job of one worker, and the framework that it starts for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlxhog import backends
from mlxhog.arena import Arena, ArenaHandle
from mlxhog.backends.backend import Backend
from mlxhog.backends.gpu_share import GPUShare, max_sequences
from mlxhog.base import capabilities, float32
from mlxhog.base.capabilities import CellTimes
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.errors import (
    EnvironmentLacks,
    MetalError,
    ShapeError,
    is_lost_gpu,
    message_of,
    one_line,
    whole_text,
)
from mlxhog.models import cells
from mlxhog.optim import metal_steps
from mlxhog.optim.gradients import Float32
from mlxhog.training.plan.kernel_choice import choose_cells
from mlxhog.training.plan.values import Plan

# macOS ends the work of a GPU worker that keeps the display waiting. MLX 0.32 raises Metal's error
# at the next wait for the GPU; older versions abort the process on a thread of Metal, where no
# error can be caught. torch does not look, so its backend does (`TorchBackend`). A process does not
# recover from either. The remedy is less work at a time, so the worker restarts with half the
# micro-batch; the sequences of its ticket, and so the gradient, stay the same.
# Sources: mlx, `CommandEncoder::commit` and `Event::check_error`; mlx issue 3267 (open), where
# users report that the hints help; pytorch issue 193571.

LOST_GPU_EXIT_CODE = 75  # of a worker whose framework reported the loss: EX_TEMPFAIL
METAL_EXIT_CODE = 69  # of a worker whose Metal kernels failed: EX_UNAVAILABLE
MAX_HALVINGS = 3
HINTS = (
    "a shorter --seq-len, the environment variable MLX_MAX_OPS_PER_BUFFER=8, or a display that is "
    "off may help"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The plan of a run, and what one of its workers needs beside it; picklable for `spawn`."""

    plan: Plan  # with the run's present strategy
    handle: ArenaHandle | None  # None in a job for a worker that has the arena
    slot: int  # in the worker table, from 1
    run_dir: Path
    budget: Budget  # of this call, in steps of the present strategy
    step_limit: int | None = None  # of the present strategy; None for no limit
    halvings: int = 0  # of its micro-batch, see `LOST_GPU_EXIT_CODE`
    is_eager: bool = False  # since its Metal kernels failed, see `METAL_EXIT_CODE`
    notices: list[str] = field(default_factory=list)  # of the worker, for the user

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.plan.config

    @property
    def log(self) -> Path:
        """The file of the worker's output."""
        return self.run_dir / "logs" / f"worker-{self.slot}.log"

    @property
    def spec(self) -> WorkerSpec:
        """Backend and threads."""
        return self.plan.workers[self.slot - 1]

    @property
    def step_threads(self) -> int:
        """Threads of norm, update and read; one of its own if a CPU worker overlaps them."""
        return 1 if self._is_split else self.spec.threads

    @property
    def compute_threads(self) -> int:
        """Threads of its gradients."""
        return max(1, self.spec.threads - self._is_split)

    @property
    def _is_split(self) -> bool:
        return self.config.overlap and self.spec.backend not in GPU_BACKENDS

    @property
    def kernels(self) -> str:
        """The kernel variant that it uses; never "auto"."""
        return "eager" if self.is_eager else self.plan.kernels[self.slot - 1]

    @property
    def micro_batch(self) -> int:
        """Sequences per gradient of the backend."""
        most = max_sequences(self.spec.backend, self.config.seq_len)
        return max(1, min(self.config.micro_batch >> self.halvings, most))

    @property
    def gpu_share(self) -> GPUShare:
        """The worker's share of the GPU, if it uses one."""
        share = self.plan.gpu_share
        return replace(share, piece_tokens=max(1, share.piece_tokens >> self.halvings))

    def leave_notice(self, text: str, *details: str) -> None:
        """Keep a notice for the user, which the worker sends when it is up; log it with details."""
        self.notices.append(text)
        self.log_lines(f"notice: {text}", *details)

    def log_lines(self, *lines: str) -> None:
        """Write to the worker's log, which is its standard output."""
        with suppress(OSError):  # the disk of the log may be full
            print(*lines, sep="\n", flush=True)


def start_backend(
    job: Job, arena: Arena | None, kernels: str, beat: Callable[[], object] = lambda: None
) -> Backend:
    """Start the framework with a kernel variant, and bind the model to the parameters.

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
        dtype=job.config.dtype,
    )
    beat()
    if kernels == "metal":
        faulty = check_kernels(job, backend, beat)
        choose_operators(job, backend, faulty, beat)
    live = None if arena is None else live_params(job, arena)
    recompute = job.config.recompute == "blocks"
    if job.plan.base is not None:
        job.plan.base.inside(job.run_dir).load_into(backend, job.plan.model)
    backend.bind(job.plan.model, job.plan.layout, live, job.plan.sampled, recompute=recompute)
    beat()
    return backend


def check_kernels(
    job: Job, backend: Backend, beat: Callable[[], object] = lambda: None
) -> Collection[str]:
    """Let a worker check its Metal kernels; return the operators that `auto` replaced."""
    name, requested = job.spec.backend, job.config.kernels == "metal"
    if requested and not job.config.safety_checks:
        return ()
    faults = backend.check_kernels(beat, job.plan.model)
    if not faults:
        return ()
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
    return faults.keys()


def choose_operators(
    job: Job, backend: Backend, faulty: Collection[str], beat: Callable[[], object]
) -> None:
    """Let `auto` use the eager operators that are faster for the model's cells, or do not fail.

    Cells of unknown speed are measured, and their times kept for later runs. A run that repeats
    bits uses all Metal kernels, since times change.
    """
    config, name = job.config, job.spec.backend
    if config.kernels != "auto" or config.determinism != "none":
        return
    record = capabilities.load()
    of_model = {c: n for c, n in cells.cells(job.plan.model).items() if c.operator not in faulty}
    choice = choose_cells(record, name, of_model)
    times, failed = list[CellTimes](), set[str]()
    for cell in choice.unknown:
        try:
            times += backend.measure_cells([cell], beat)
        except (MetalError, ShapeError, RuntimeError, ValueError) as error:
            if is_lost_gpu(error):
                raise
            failed.add(cell.operator)
            job.leave_notice(
                f"worker {job.slot} ({name}) uses the eager operator {cell.operator}: its Metal "
                f"kernels do not compute {cell} ({message_of(error)})",
                whole_text(error),
            )
    if times:
        kept = "kept for later runs"
        try:
            capabilities.save_cells(times)
        except EnvironmentLacks as error:
            kept = f"not kept: {error}"
        choice = choose_cells(replace(record, cells=(*times, *record.cells)), name, of_model)
        measured = replace(choice, times={one.cell: one for one in times})
        chosen = ", ".join(sorted(choice.metal - failed)) or "no operator"
        job.leave_notice(
            f"worker {job.slot} ({name}) measured its cells, {kept}: {measured}; {chosen} by Metal"
        )
    backend.make_eager(choice.eager | failed)


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
        except metal_steps.NotShared as why:
            notice = f"worker {job.slot} ({backend}) reads snapshots, not live parameters: {why}"
            job.leave_notice(notice)
            return None
    return arena.params
