"""The workers of a run, and their kernels: for the optimizer's steps, and for the model.

Which kernel adds the steps (`gpu_write` and `write`):

    gpu_write        steps of a GPU worker      steps of a CPU worker        write mode
    cpu              native kernel              native kernel                write
    metal            Metal kernel, in place     native compare-and-swap      cas
    metal-emulated   Metal source on the CPU    the same                     cas

Locks do not protect from a GPU that writes, so every CPU writer uses compare-and-swap then. No
specification says that the two are atomic to each other: `mlxhog doctor` counts lost updates on
this machine, and without its verdict `metal` and live reads of a GPU are refused.

The form of the model's operations (`kernels`), by worker:

    kernels      worker on a CPU                          worker on a GPU
    auto         native, where it is built; reference     metal, unless doctor found it wrong or
                 where compute_dtype is bfloat16          slower; then reference
    metal        refused                                  metal, where doctor found it right
    others       as `models.ops.kernels.resolve` says

All choices are made before any worker starts, so no worker fails for lack of a kernel. A worker
with Metal kernels checks them when it starts; with auto it replaces each operator whose kernels
have a fault by the plain one, and says so (`mlxhog.training.worker.check_kernels`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from mlxhog._native import ops
from mlxhog.backends import gpu_share
from mlxhog.base import float32, machine, verdicts
from mlxhog.base.verdicts import GPU_ENGINES, Verdicts
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.config import optimizers, rules
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models.ops import kernels


@dataclass(frozen=True)
class Writers:
    """How steps are added in a run.

    Attributes:
        gpu_write: cpu, metal or metal-emulated.
        write: the arena's write mode.
        notes: for the user, on automatic choices and their reasons.
    """

    gpu_write: str
    write: str
    notes: tuple[str, ...] = ()

    def engine(self, backend: str) -> str | None:
        """The Metal engine through which a worker adds its steps, or None: native code adds them.

        Args:
            backend: the worker's, such as "mlx:gpu".
        """
        if self.gpu_write == EMULATED:  # a test of the source, never of a GPU
            return "emulated:mlx" if backend.startswith("mlx") else "emulated:mps"
        return GPU_ENGINES.get(backend) if self.gpu_write == "metal" else None


def choose_writers(config: TrainConfig, backends: Sequence[str], record: Verdicts) -> Writers:
    """Choose how the steps of a run's workers are added.

    Args:
        config: of the run.
        backends: of all workers, once per worker.
        record: doctor's results on this machine.

    Raises:
        ConfigError: Metal kernels were requested in a run without a GPU worker.
        EnvironmentLacks: doctor's verdict on this machine does not allow the requested way.
    """
    on_gpu = sorted(set(backends) & set(GPU_BACKENDS))
    if config.read == "live" and not config.force:  # its bits may be torn, or old
        for backend in on_gpu:
            verdict = record.live_read(backend)
            _require(
                verdict.ok, f"read=live of {backend}", "safe", verdict.reason, "--read snapshot"
            )
    by_cpu = Writers("cpu", "lossless" if config.write == "auto" else config.write)
    if config.gpu_write == EMULATED:
        return Writers(EMULATED, "cas")
    if config.gpu_write == "metal":
        if not on_gpu:
            raise ConfigError(
                f"gpu_write=metal needs a GPU worker, workers are {', '.join(backends)}; add "
                f"mlx:gpu, or use gpu_write={EMULATED} to run the Metal source on the CPU"
            )
        refusal = doctors_refusal(backends, record)
        ok = config.force or refusal is None
        _require(ok, "gpu_write=metal", "safe", refusal, "--gpu-write auto (now cpu)")
        return Writers("metal", "cas")
    if config.gpu_write != "auto":
        return by_cpu
    if config.strategy is not None and config.strategy.copies:
        own = f"every worker of {config.strategy.name} has parameters of its own"
        refusal = f"{own}, and the CPU adds to them"
    elif config.write not in ("auto", "cas") and on_gpu:
        refusal = f"write={config.write} was requested, and a GPU that writes needs cas"
    else:
        refusal = why_not_metal(backends, record)
    if refusal is None:
        return Writers("metal", "cas", ("gpu_write auto: metal, no update was lost here",))
    return replace(by_cpu, notes=(f"gpu_write auto: cpu, because {refusal}",))


def _require(ok: bool, choice: str, what: str, reason: str | None, other: str) -> None:
    if not ok:
        raise EnvironmentLacks(
            f"{choice} is not known to be {what} here: {reason}; use {other}, run mlxhog doctor, "
            "or insist with --force"
        )


def doctors_refusal(backends: Sequence[str], record: Verdicts) -> str | None:
    """The reason why the GPU must not write; None if kernels are right and lose no update.

    Args:
        backends: of all workers, once per worker.
        record: doctor's results.
    """
    engines = sorted({GPU_ENGINES[backend] for backend in backends if backend in GPU_ENGINES})
    for verdict in (record.gpu_write(backends), *map(record.kernels, engines)):
        if not verdict.ok:
            return verdict.reason
    return None


def why_not_metal(backends: Sequence[str], record: Verdicts) -> str | None:
    """The reason why `auto` lets the CPU add the steps of GPU workers; None if the GPU may.

    Args:
        backends: of all workers, once per worker.
        record: doctor's results.
    """
    on_gpu = set(backends) & set(GPU_BACKENDS)
    if not on_gpu:
        return "no worker of this run uses a GPU"
    if set(backends) - on_gpu:
        return "CPU workers add to the same parameters"
    return doctors_refusal(backends, record)


def choose_kernels(
    config: TrainConfig, backends: Sequence[str], record: Verdicts
) -> tuple[tuple[str, ...], list[str]]:
    """Choose the form of each worker, never "auto"; also returns notes on automatic choices.

    Args:
        config: of the run.
        backends: of all workers, once per worker.
        record: doctor's results on this machine.

    Raises:
        ConfigError: a worker cannot run the requested form.
        EnvironmentLacks: Metal kernels were requested, and doctor has not found them right here; or
            native ones are not built.
    """
    choice, dtype = config.kernels, config.compute_dtype
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(backends):
        framework, device = name.split(":")
        verified = record.model_kernels(name).ok
        chosen[name] = kernels.resolve(
            framework, choice, device, metal_verified=verified, weights=dtype
        )
    notes = []
    for name in [name for name in chosen if name in GPU_BACKENDS]:
        right = record.kernels(GPU_ENGINES[name])
        if choice == "metal":
            ok = config.force or right.ok
            _require(ok, f"kernels=metal of {name}", "right", right.reason, "--kernels auto")
        elif choice == "auto" and chosen[name] == "metal":
            notes.append(f"kernels auto: metal on {name}, {record.model_kernels(name).reason}")
        elif choice == "auto" and not right.ok:  # else the plain operations are merely faster
            notes.append(f"kernels auto: {chosen[name]} on {name}, because {right.reason}")
    if choice == "auto" and dtype != "float32" and not set(chosen) <= set(GPU_BACKENDS):
        notes.append(
            f"kernels auto: reference on CPUs, whose native kernels do not compute in {dtype}"
        )
    return tuple(chosen[name] for name in backends), notes


def check_recorded(
    config: TrainConfig, backends: Sequence[str], forms: Sequence[str], record: Verdicts
) -> None:
    """Refuse GPU workers in a recorded run, unless doctor found that their gradients repeat.

    Args:
        config: of the run.
        backends: of its workers.
        forms: of the model's operations, of each worker.
        record: doctor's results on this machine.

    Raises:
        EnvironmentLacks: the run is recorded, and the gradients of a GPU worker may not repeat.
    """
    if config.determinism != "record" or config.force:
        return
    for name, form in zip(backends, forms, strict=True):
        if name in GPU_BACKENDS and not (verdict := record.repeats(name, form)).ok:
            raise EnvironmentLacks(
                f"determinism=record: {name} is not known to compute the same bits again here: "
                f"{verdict.reason}; record workers on the CPU, such as --workers "
                "mlx:cpu,torch:cpu, run mlxhog doctor, or insist with --force"
            )


@dataclass(frozen=True)
class RunEngines:
    """Workers, kernels and writers of a run on this machine.

    Attributes:
        workers: backend and threads of each.
        writers: how their steps are added, and in which write mode.
        kernels: form of the model's operations of each worker.
        notes: for the user, on these choices.
        machine_bytes: memory of this machine.
    """

    workers: tuple[WorkerSpec, ...]
    writers: Writers
    kernels: tuple[str, ...]
    notes: tuple[str, ...]
    machine_bytes: int

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Choose them by the results of `mlxhog doctor` on this machine.

        Raises:
            ConfigError: the options name workers or kernels that do not exist or do not fit.
            EnvironmentLacks: this machine lacks one of them.
        """
        here, record = machine.here(), verdicts.load()
        chosen = resolve_workers(
            config.workers,
            config.threads,
            machine=here,
            max_workers=config.max_workers,
            serial=config.strategy is not None and config.strategy.one_process,
            tokens_per_s=record.tokens_per_s,
            pair=record.pair(),
        )
        rules.check_ranks(config.slow, len(chosen.workers))
        backends: Sequence[str] = [worker.backend for worker in chosen.workers]
        writers = choose_writers(config, backends, record)
        kernels, kernel_notes = choose_kernels(config, backends, record)
        check_recorded(config, backends, kernels, record)
        tf32 = float32.note(backends, here, promised=config.determinism != "none")
        tokens = gpu_share.token_note(backends, config.micro_batch, config.seq_len)
        notes = [*chosen.notes, *writers.notes, *kernel_notes, *filter(None, [tf32, tokens])]
        if sys.platform == "darwin" and not ops.has_blas() and optimizers.of(config).name == "muon":
            notes.append(
                "muon's products on the CPU are our own, about a tenth as fast as Accelerate's, "
                "because Accelerate of this macOS has no cblas_sgemm; workers on GPUs need none "
                "(--orthogonalization-device worker)"
            )
        return cls(chosen.workers, writers, kernels, tuple(notes), here.memory_bytes)
