"""What a worker is given when it is spawned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxhog.arena import ArenaHandle
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.budget import Budget
from mlxhog.config import TrainConfig
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.models.families import ModelConfig


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to begin; picklable for `spawn`.

    Attributes:
        handle: the arena.
        slot: the worker's slot in the worker table, from 1.
        owner: the incarnation under which it takes tickets.
        workers: number of workers in the run.
        backend: such as "torch:cpu".
        threads: CPU threads it may use.
        write: the arena's write mode.
        kernels: form of the model's operations that it uses; never "auto".
        engine: the Metal engine through which it adds its steps; None adds them by native code.
        micro_batch: sequences in one gradient of its backend.
        share: of the GPU, where it has one.
        config: the run's configuration.
        model: the architecture.
        train: token file to train on.
        val: token file of held-out text.
        tokenizer: made the tokens.
        budget: how long to train.
        step_limit: the budget in steps, where it limits them.
        run_dir: for logs and samples.
    """

    handle: ArenaHandle
    slot: int
    owner: int
    workers: int
    backend: str
    threads: int
    write: str
    kernels: str
    engine: str | None
    micro_batch: int
    share: GPUShare
    config: TrainConfig
    model: ModelConfig
    train: Path
    val: Path
    tokenizer: Tokenizer
    budget: Budget
    step_limit: int | None
    run_dir: Path
