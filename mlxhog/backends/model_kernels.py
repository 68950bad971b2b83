"""Which form of the model's operations each worker of a run uses: what `kernels` means here.

    kernels      worker on a CPU                          worker on a GPU
    auto         native, where it is built; reference     metal, where doctor found it right and
                 where compute_dtype is bfloat16          faster; else reference
    metal        refused                                  metal, where doctor found it right
    others       as `models.kernels.resolve` says

All is known before anything is started: a worker never has to find out that it cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxhog.config.config import TrainConfig
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine import verdicts
from mlxhog.machine.verdicts import GPU_ENGINES, Verdicts
from mlxhog.machine.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.models.ops import kernels


@dataclass(frozen=True)
class Chosen:
    """The forms of a run.

    Attributes:
        of_workers: of each worker, in their order; never "auto".
        notes: what was chosen for the user, and why.
    """

    of_workers: tuple[str, ...]
    notes: tuple[str, ...] = ()


def resolve(config: TrainConfig, workers: Sequence[WorkerSpec]) -> Chosen:
    """Return what each of these workers uses on this machine.

    Raises:
        ConfigError: a worker cannot run what was asked for.
        EnvironmentLacks: Metal kernels were asked for, and doctor has not found them right here; or
            native ones are not built.
    """
    asked, found = config.kernels, verdicts.load()
    names = [worker.backend for worker in workers]
    dtype = config.compute_dtype
    chosen = {name: of_backend(asked, name, found, dtype) for name in dict.fromkeys(names)}
    on_gpu = [name for name in chosen if name in GPU_BACKENDS]
    if asked == "metal" and not config.force:
        for name in on_gpu:
            _check_right(name, found)
    notes = [_note(name, chosen[name], found) for name in on_gpu] if asked == "auto" else []
    if asked == "auto" and dtype != "float32" and len(on_gpu) < len(chosen):
        notes.append(
            f"kernels auto: reference on CPUs, whose native kernels do not compute in {dtype}"
        )
    return Chosen(tuple(chosen[name] for name in names), tuple(filter(None, notes)))


def of_backend(asked: str, backend: str, found: Verdicts, compute_dtype: str = "float32") -> str:
    """Return what a choice of kernels means for workers of a backend.

    Args:
        asked: the option.
        backend: such as "mlx:gpu".
        found: what doctor found on this machine.
        compute_dtype: of the run.

    Raises:
        ConfigError, EnvironmentLacks: see `models.kernels.resolve`.
    """
    framework, device = backend.split(":")
    worth_it = backend in GPU_BACKENDS and found.model_kernels(backend).ok
    return kernels.resolve(framework, asked, device, metal_verified=worth_it, weights=compute_dtype)


def _check_right(backend: str, found: Verdicts) -> None:
    verdict = found.kernels(GPU_ENGINES[backend])
    if not verdict.ok:
        raise EnvironmentLacks(
            f"kernels=metal of {backend} is not known to be right here: {verdict.reason}; "
            "use --kernels auto, run mlxhog doctor, or insist with --force"
        )


def _note(backend: str, chosen: str, found: Verdicts) -> str:
    """Say what `auto` made of a GPU; "" where the plain operations are merely the faster ones."""
    if chosen == "metal":
        return f"kernels auto: metal on {backend}, {found.model_kernels(backend).reason}"
    right = found.kernels(GPU_ENGINES[backend])
    return "" if right.ok else f"kernels auto: {chosen} on {backend}, because {right.reason}"
