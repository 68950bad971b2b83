"""The choice of kernels for the workers of a run: for the optimizer's steps, and for the model.

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

from collections.abc import Sequence
from dataclasses import dataclass

from mlxhog.base.verdicts import GPU_ENGINES, Verdicts
from mlxhog.base.workers import GPU_BACKENDS
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

    @property
    def emulated(self) -> bool:
        """Whether Metal source runs on the CPU: a test of the source, never of a GPU."""
        return self.gpu_write == EMULATED

    def engine(self, backend: str) -> str | None:
        """The Metal engine through which a worker adds its steps, or None: native code adds them.

        Args:
            backend: the worker's, such as "mlx:gpu".
        """
        if self.emulated:
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
    _check_live_reads(config, backends, record)
    if config.gpu_write == "metal":
        _check_metal(config, backends, record)
        return Writers("metal", "cas")
    if config.gpu_write == EMULATED:
        return Writers(EMULATED, "cas")
    if config.gpu_write == "auto":
        refusal = _why_not_auto(config, backends, record)
        if refusal is None:
            return Writers("metal", "cas", ("gpu_write auto: metal, no update was lost here",))
        note = f"gpu_write auto: cpu, because {refusal}"
        return Writers("cpu", _cpu_mode(config), (note,))
    return Writers("cpu", _cpu_mode(config))


def _cpu_mode(config: TrainConfig) -> str:
    return "lossless" if config.write == "auto" else config.write


def _check_metal(config: TrainConfig, backends: Sequence[str], record: Verdicts) -> None:
    if not set(backends) & set(GPU_BACKENDS):
        raise ConfigError(
            f"gpu_write=metal needs a GPU worker, workers are {', '.join(backends)}; add mlx:gpu, "
            f"or use gpu_write={EMULATED} to run the Metal source on the CPU"
        )
    refusal = doctors_refusal(backends, record)
    if refusal is not None and not config.force:
        raise EnvironmentLacks(
            f"gpu_write=metal is not known to be safe here: {refusal}; "
            "use --gpu-write auto (now cpu), run mlxhog doctor, or insist with --force"
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


def _why_not_auto(config: TrainConfig, backends: Sequence[str], record: Verdicts) -> str | None:
    if config.strategy is not None and config.strategy.copies:
        own = f"every worker of {config.strategy.name} has parameters of its own"
        return f"{own}, and the CPU adds to them"
    other_mode = config.write not in ("auto", "cas") and set(backends) & set(GPU_BACKENDS)
    if other_mode:
        return f"write={config.write} was requested, and a GPU that writes needs cas"
    return why_not_metal(backends, record)


def _check_live_reads(config: TrainConfig, backends: Sequence[str], record: Verdicts) -> None:
    """Refuse GPU reads of shared memory, unless doctor found them untorn and current."""
    if config.read != "live" or config.force:
        return
    for backend in sorted(set(backends) & set(GPU_BACKENDS)):
        verdict = record.live_read(backend)
        if not verdict.ok:
            raise EnvironmentLacks(
                f"read=live of {backend} is not known to be safe here: {verdict.reason}; "
                "use --read snapshot, run mlxhog doctor, or insist with --force"
            )


@dataclass(frozen=True)
class ModelKernels:
    """The forms of the model's operations in a run.

    Attributes:
        of_workers: form of each worker, in order; never "auto".
        notes: for the user, on automatic choices and their reasons.
    """

    of_workers: tuple[str, ...]
    notes: tuple[str, ...] = ()


def choose_kernels(config: TrainConfig, backends: Sequence[str], record: Verdicts) -> ModelKernels:
    """Choose the form of each worker.

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
    on_gpu = [name for name in chosen if name in GPU_BACKENDS]
    if choice == "metal" and not config.force:
        for name in on_gpu:
            _check_right(name, record)
    notes = [_note(name, chosen[name], record) for name in on_gpu] if choice == "auto" else []
    if choice == "auto" and dtype != "float32" and len(on_gpu) < len(chosen):
        notes.append(
            f"kernels auto: reference on CPUs, whose native kernels do not compute in {dtype}"
        )
    return ModelKernels(tuple(chosen[name] for name in backends), tuple(filter(None, notes)))


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


def _check_right(backend: str, record: Verdicts) -> None:
    verdict = record.kernels(GPU_ENGINES[backend])
    if not verdict.ok:
        raise EnvironmentLacks(
            f"kernels=metal of {backend} is not known to be right here: {verdict.reason}; "
            "use --kernels auto, run mlxhog doctor, or insist with --force"
        )


def _note(backend: str, chosen: str, record: Verdicts) -> str:
    """A note on the choice of `auto` for a GPU; "" if the plain operations are merely faster."""
    if chosen == "metal":
        return f"kernels auto: metal on {backend}, {record.model_kernels(backend).reason}"
    right = record.kernels(GPU_ENGINES[backend])
    return "" if right.ok else f"kernels auto: {chosen} on {backend}, because {right.reason}"
