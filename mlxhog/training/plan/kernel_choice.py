"""The workers of a run, and their kernels: for updates, and for the model.

Which kernel applies the updates (`gpu_write` and `write`):

    gpu_write        updates of a GPU worker    updates of a CPU worker      write mode
    cpu              native kernel              native kernel                write
    metal            Metal kernel, in place     native compare-and-swap      cas
    metal-emulated   Metal source on the CPU    the same                     cas

Locks do not protect from a GPU that writes, so every CPU writer uses compare-and-swap then. No
specification says that the two are atomic to each other: `mlxhog doctor` counts lost updates on
this machine, and without its record `metal` and live reads of a GPU are refused.

The implementation of the model's operators (`kernels`), by worker:

    kernels      worker on a CPU                          worker on a GPU
    auto         native, where it is built                metal, unless doctor found it wrong or
                                                          slower; then eager
    metal        refused                                  metal, where doctor found it right
    others       as `models.ops.kernels.resolve` says

All choices are made before any worker starts, so no worker fails for lack of a kernel. A worker
with Metal kernels checks them when it starts; with auto it replaces each operator whose kernels
have a fault by the eager one, and says so (`mlxhog.training.plan.job.check_kernels`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlxhog.backends import gpu_share
from mlxhog.base import capabilities, float32
from mlxhog.base.capabilities import GPU_ENGINES, CapabilityRecord
from mlxhog.base.machine import Machine
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.config import rules
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models.ops import kernels
from mlxhog.strategies import strategy_of


@dataclass(frozen=True)
class Writers:
    """How updates are applied: by the CPU, Metal or emulated Metal, and the arena's write mode."""

    gpu_write: str
    write: str

    def engine(self, backend: str) -> str | None:
        """The Metal engine through which a worker applies its updates; None for native code."""
        if self.gpu_write == EMULATED:  # a test of the source, never of a GPU
            return "emulated"
        return GPU_ENGINES.get(backend) if self.gpu_write == "metal" else None


def choose(
    config: TrainConfig, here: Machine, note: Tell
) -> tuple[tuple[WorkerSpec, ...], Writers, tuple[str, ...]]:
    """Choose workers, writers, and each worker's kernels, by the results of `mlxhog doctor`."""
    record, strategy = capabilities.load(), strategy_of(config)
    chosen = resolve_workers(
        config.workers,
        config.threads,
        machine=here,
        max_workers=config.max_workers,
        serial=strategy is not None and strategy.one_process,
        tokens_per_s=record.tokens_per_s,
        pair=record.pair(),
    )
    for text in chosen.notes:
        note(text)
    rules.check_ranks(config.inject_stragglers, len(chosen.workers))
    backends = [worker.backend for worker in chosen.workers]
    writers, variants = choose_for(config, backends, note)
    promised = config.determinism != "none"
    for text in (
        float32.note(backends, here, disabled=promised),
        gpu_share.token_note(backends, config.micro_batch, config.seq_len),
    ):
        if text:
            note(text)
    return chosen.workers, writers, variants


def choose_for(
    config: TrainConfig, backends: Sequence[str], note: Tell = lambda message: None
) -> tuple[Writers, tuple[str, ...]]:
    """Choose writers, and the kernel variant of each of these workers."""
    record = capabilities.load()
    writers = choose_writers(config, backends, record, note)
    variants = choose_kernels(config, backends, record, note)
    check_recorded(config, backends, variants, record)
    return writers, variants


def choose_writers(
    config: TrainConfig, backends: Sequence[str], record: CapabilityRecord, note: Tell
) -> Writers:
    """Choose how the updates of workers with these backends are applied."""
    on_gpu = sorted(set(backends) & set(GPU_BACKENDS))
    if config.read == "live" and config.safety_checks:  # its bits may be torn, or old
        for backend in on_gpu:
            found = record.live_read(backend)
            _require(found.ok, f"read=live of {backend}", "safe", found.reason, "--read snapshot")
    if config.gpu_write == EMULATED:
        return Writers(EMULATED, "cas")
    if config.gpu_write == "metal":
        if not on_gpu:
            raise ConfigError(
                f"gpu_write=metal needs a GPU worker, workers are {', '.join(backends)}; add "
                f"mlx:gpu, or use gpu_write={EMULATED} to run the Metal source on the CPU"
            )
        refusal = doctors_refusal(backends, record)
        ok = not config.safety_checks or refusal is None
        _require(ok, "gpu_write=metal", "safe", refusal, "--gpu-write auto (now cpu)")
        return Writers("metal", "cas")
    if config.gpu_write == "auto":
        if (strategy := strategy_of(config)) is not None and strategy.copies:
            own = f"every worker of {strategy.name} has parameters of its own"
            refusal = f"{own}, and the CPU updates them"
        elif config.write not in ("auto", "cas") and on_gpu:
            refusal = f"write={config.write} was requested, and a GPU that writes needs cas"
        else:
            refusal = why_not_metal(backends, record)
        if refusal is None:
            note("gpu_write auto: metal, no update was lost here")
            return Writers("metal", "cas")
        note(f"gpu_write auto: cpu, because {refusal}")
    return Writers("cpu", "lossless" if config.write == "auto" else config.write)


def _require(ok: bool, choice: str, what: str, reason: str | None, other: str) -> None:
    if not ok:
        raise EnvironmentLacks(
            f"{choice} is not known to be {what} here: {reason}; use {other}, run mlxhog doctor, "
            "or insist with --no-safety-checks"
        )


def doctors_refusal(backends: Sequence[str], record: CapabilityRecord) -> str | None:
    """The reason why the GPU must not write; None if kernels are right and lose no update."""
    engines = sorted({GPU_ENGINES[backend] for backend in backends if backend in GPU_ENGINES})
    every = (record.gpu_write(backends), *map(record.kernels, engines))
    return next((verdict.reason for verdict in every if not verdict.ok), None)


def why_not_metal(backends: Sequence[str], record: CapabilityRecord) -> str | None:
    """The reason why `auto` lets the CPU apply the updates of GPU workers; None if the GPU may."""
    on_gpu = set(backends) & set(GPU_BACKENDS)
    if not on_gpu:
        return "no worker of this run uses a GPU"
    if set(backends) - on_gpu:
        return "CPU workers update the same parameters"
    return doctors_refusal(backends, record)


def choose_kernels(
    config: TrainConfig, backends: Sequence[str], record: CapabilityRecord, note: Tell
) -> tuple[str, ...]:
    """Choose the kernel variant of each worker, never "auto"."""
    choice = config.kernels
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(backends):
        framework, device = name.split(":")
        verified = record.model_kernels(name).ok
        chosen[name] = kernels.resolve(framework, choice, device, metal_verified=verified)
    for name in [name for name in chosen if name in GPU_BACKENDS]:
        right = record.kernels(GPU_ENGINES[name])
        if choice == "metal":
            ok = not config.safety_checks or right.ok
            _require(ok, f"kernels=metal of {name}", "right", right.reason, "--kernels auto")
        elif choice == "auto" and chosen[name] == "metal":
            note(f"kernels auto: metal on {name}, {record.model_kernels(name).reason}")
        elif choice == "auto" and not right.ok:  # else the eager operators are merely faster
            note(f"kernels auto: {chosen[name]} on {name}, because {right.reason}")
    if config.dtype == "auto" and any(
        kernels.uses_bf16_matmuls(variant, "auto") for variant in chosen.values()
    ):
        note("bf16 matmuls, faster on this machine (--dtype float32 to disable)")
    return tuple(chosen[name] for name in backends)


def check_recorded(
    config: TrainConfig, backends: Sequence[str], variants: Sequence[str], record: CapabilityRecord
) -> None:
    """Refuse GPU workers in a recorded run, unless doctor found that their gradients repeat."""
    if config.determinism != "record" or not config.safety_checks:
        return
    for name, variant in zip(backends, variants, strict=True):
        if name in GPU_BACKENDS and not (verdict := record.repeats(name, variant)).ok:
            raise EnvironmentLacks(
                f"determinism=record: {name} is not known to compute the same bits again here: "
                f"{verdict.reason}; record workers on the CPU, such as --workers "
                "mlx:cpu,torch:cpu, run mlxhog doctor, or insist with --no-safety-checks"
            )
