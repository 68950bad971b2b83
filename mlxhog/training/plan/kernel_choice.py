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
    auto         native, where it is built                of each operator the faster one for the
                                                          model's cells: metal or eager; eager where
                                                          doctor found metal wrong
    metal        refused                                  metal, where doctor found it right
    others       as `models.ops.kernels.resolve` says

All choices are made before any worker starts, so no worker fails for lack of a kernel. A worker
with Metal kernels checks them when it starts; with auto it replaces each operator whose kernels
have a fault by the eager one, and says so (`mlxhog.training.plan.job.check_kernels`). It also times
the cells that neither doctor nor an earlier run has measured at such sizes, and keeps the times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlxhog.backends import gpu_share
from mlxhog.base import capabilities, float32
from mlxhog.base.capabilities import GPU_ENGINES, CapabilityRecord, CellShape, CellTimes
from mlxhog.base.machine import Machine
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec, resolve_workers
from mlxhog.config import rules
from mlxhog.config.config import TrainConfig
from mlxhog.config.train_options import EMULATED
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models import cells
from mlxhog.models.families import ModelConfig
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


@dataclass(frozen=True)
class CellChoice:
    """Which operators of a model are faster as Metal kernels, by the times of its cells."""

    eager: frozenset[str] = frozenset()  # faster, or as fast, without
    metal: frozenset[str] = frozenset()
    unknown: tuple[CellShape, ...] = ()  # none of such sizes was measured; their operators: metal
    times: Mapping[CellShape, CellTimes] = field(default_factory=dict)  # by the cell of the model

    def __str__(self) -> str:
        """Both times of each cell that was measured."""
        return "; ".join(
            f"{cell} {1e3 * one.metal_s:.3g} ms by Metal, {1e3 * one.eager_s:.3g} ms eager"
            + f" (measured at {'x'.join(map(str, one.cell.sizes))})" * (cell != one.cell)
            for cell, one in self.times.items()
        )


def choose_cells(
    record: CapabilityRecord, backend: str, of_model: Mapping[CellShape, int]
) -> CellChoice:
    """Choose the kernels of the operators of a model, by its cells and the number of their layers.

    The eager operator is chosen where its cells take no longer in all layers together.
    """
    near = {cell: record.times_of(backend, cell) for cell in of_model}
    times = {cell: one for cell, one in near.items() if one is not None}
    gains, unknown = dict[str, float](), tuple(cell for cell in of_model if cell not in times)
    for cell, one in times.items():
        gain = of_model[cell] * (one.eager_s - one.metal_s)
        gains[cell.operator] = gains.get(cell.operator, 0.0) + gain
    open_ones = {cell.operator for cell in unknown}
    eager = frozenset(name for name, gain in gains.items() if gain <= 0 and name not in open_ones)
    metal = frozenset(cell.operator for cell in of_model) - eager
    return CellChoice(eager, metal, unknown, times)


def choose(
    config: TrainConfig, model: ModelConfig, here: Machine, note: Tell
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
    writers, variants = choose_for(config, model, backends, note)
    promised = config.determinism != "none"
    for text in (
        float32.note(backends, here, disabled=promised),
        gpu_share.token_note(backends, config.micro_batch, config.seq_len),
    ):
        if text:
            note(text)
    return chosen.workers, writers, variants


def choose_for(
    config: TrainConfig, model: ModelConfig, backends: Sequence[str],
    note: Tell = lambda message: None,
) -> tuple[Writers, tuple[str, ...]]:  # fmt: skip
    """Choose writers, and the kernel variant of each of these workers."""
    record = capabilities.load()
    writers = choose_writers(config, backends, record, note)
    variants = choose_kernels(config, model, backends, record, note)
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
    config: TrainConfig, model: ModelConfig, backends: Sequence[str], record: CapabilityRecord,
    note: Tell,
) -> tuple[str, ...]:  # fmt: skip
    """Choose the kernel variant of each worker, never "auto"."""
    choice, chosen = config.kernels, dict[str, str]()
    if config.determinism != "none":  # times change, and with them bits
        record = replace(record, cells=())
    for name in dict.fromkeys(backends):
        framework, device = name.split(":")
        may = record.model_kernels(name)
        best = choose_cells(record, name, cells.cells(model) if may.ok else {})
        verified = may.ok and bool(best.metal)
        chosen[name] = kernels.resolve(framework, choice, device, metal_verified=verified)
        if name not in GPU_BACKENDS:
            continue
        if choice == "metal":
            right = record.kernels(GPU_ENGINES[name])
            ok = not config.safety_checks or right.ok
            _require(ok, f"kernels=metal of {name}", "right", right.reason, "--kernels auto")
        elif choice == "auto" and not may.ok:
            note(f"kernels auto: {chosen[name]} on {name}, because {may.reason}")
        elif choice == "auto" and cells.cells(model):
            note(_said(name, chosen[name], best, may.reason, measures=config.determinism == "none"))
    if config.dtype == "auto" and any(
        kernels.uses_bf16_matmuls(variant, "auto") for variant in chosen.values()
    ):
        note("bf16 matmuls, faster on this machine (--dtype float32 to disable)")
    return tuple(chosen[name] for name in backends)


def _said(name: str, variant: str, best: CellChoice, reason: str, *, measures: bool) -> str:
    """Say which kernels a GPU worker will use, and why."""
    text = f"kernels auto: {variant} on {name}"
    if variant == "metal" and best.eager:
        text += f" without {', '.join(sorted(best.eager))}"
    parts = [f"{text}, {reason}", *([str(best)] if best.times else [])]
    if best.unknown and measures:
        names = ", ".join(map(str, best.unknown))
        parts.append(f"{names} not measured: a worker does that when it starts")
    return "; ".join(parts)


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
