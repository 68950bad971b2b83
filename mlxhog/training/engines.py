"""The workers of a run, their kernels, and the code that adds their steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from mlxhog._native import ops
from mlxhog.backends import gpu_share
from mlxhog.base import float32, machine, verdicts
from mlxhog.base.workers import WorkerSpec, resolve_workers
from mlxhog.config import optimizers, rules
from mlxhog.config.config import TrainConfig
from mlxhog.training import kernel_choice
from mlxhog.training.kernel_choice import Writers


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
        writers = kernel_choice.choose_writers(config, backends, record)
        kernels = kernel_choice.choose_kernels(config, backends, record)
        kernel_choice.check_recorded(config, backends, kernels.of_workers, record)
        tf32 = float32.note(backends, here, promised=config.determinism != "none")
        tokens = gpu_share.token_note(backends, config.micro_batch, config.seq_len)
        own = (*_product_notes(config), *filter(None, [tf32, tokens]))
        notes = (*chosen.notes, *writers.notes, *kernels.notes, *own)
        return cls(chosen.workers, writers, kernels.of_workers, notes, here.memory_bytes)


def _product_notes(config: TrainConfig) -> list[str]:
    """A note on the CPU's products on a Mac that lacks those of its matrix units."""
    if sys.platform != "darwin" or ops.has_blas() or optimizers.of(config).name != "muon":
        return []
    return [
        "muon's products on the CPU are our own, about a tenth as fast as Accelerate's, because "
        "Accelerate of this macOS has no cblas_sgemm; workers on GPUs need none "
        "(--orthogonalization-device worker)"
    ]
