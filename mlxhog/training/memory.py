"""The memory of a run: estimates, limits, and the number of free worker slots.

The arena is shared: parameters, optimizer state, copies for readers, and a part for each worker
slot. Snapshots, gradients, activations and the process itself are private to each worker; their
size is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlxhog.arena import Layout
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategy import FedBack, Sparse
from mlxhog.errors import EnvironmentLacks
from mlxhog.files.quantities import format_bytes
from mlxhog.machine.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.optim import Optimizer
from mlxhog.strategies import Strategy
from mlxhog.training.kernel_choice import Writers

WORKER_BASE_BYTES = 400 << 20  # interpreter, framework and its first allocations
FREE_SLOTS = 2  # for workers that join, without --max-workers
FREE_SLOTS_SHARE = 1 / 16  # largest part of a run's memory for free slots
LIVE_PART = 0.1  # largest part of a run's memory for copies for readers, with --live auto
ACTIVATIONS_PER_TOKEN = 40  # floats per token, block and unit of width that a backward pass keeps


@dataclass(frozen=True)
class Memory:
    """The memory that a run may take.

    Attributes:
        machine_bytes: of this machine.
        part: of it that a run may take (`memory_limit`).
    """

    machine_bytes: int
    part: float

    @property
    def limit_bytes(self) -> float:
        """The memory that a run may take."""
        return self.part * self.machine_bytes

    def check_parameters(self, name: str, model: ModelConfig) -> None:
        """Refuse a model whose parameters do not fit, before its blocks are listed one by one.

        Args:
            name: of the model.
            model: the architecture.

        Raises:
            EnvironmentLacks: they do not fit.
        """
        n_bytes = 4 * param_count(model)
        if n_bytes > self.limit_bytes:
            raise EnvironmentLacks(
                f"the parameters of model {name} alone need {n_bytes / 2**30:.1f} GiB, the "
                f"limit is {self._limit()}; use a smaller --model, or raise --memory-limit"
            )

    def check_run(self, arena_bytes: int, worker_bytes: int, workers: int) -> None:
        """Refuse a run that does not fit.

        Args:
            arena_bytes: shared memory.
            worker_bytes: of each worker.
            workers: workers at the start.

        Raises:
            EnvironmentLacks: it does not fit.
        """
        n_bytes = arena_bytes + workers * worker_bytes
        if n_bytes > self.limit_bytes:
            raise EnvironmentLacks(
                f"the run needs {n_bytes / 2**30:.1f} GiB ({arena_bytes / 2**30:.1f} shared, "
                f"{worker_bytes / 2**30:.1f} in each of {workers} workers), the limit is "
                f"{self._limit()}; use fewer --workers, a smaller --batch-size or --model, or "
                "raise --memory-limit"
            )

    def check_joined(self, arena_bytes: int, worker_bytes: int, workers: int) -> None:
        """Refuse workers that join if all together do not fit; arguments as for `check_run`.

        Raises:
            EnvironmentLacks: they do not fit.
        """
        n_bytes, limit = arena_bytes + workers * worker_bytes, self.limit_bytes
        if n_bytes > limit:
            raise EnvironmentLacks(
                f"{workers} workers need {format_bytes(n_bytes)} ({format_bytes(worker_bytes)} "
                f"each), the limit is {format_bytes(limit)}; start the run with a larger "
                "--memory-limit"
            )

    def _limit(self) -> str:
        gib = 2**30
        return f"{self.limit_bytes / gib:.1f} GiB ({self.part:g} of {self.machine_bytes / gib:.1f})"

    def keeps_copies(self, live: str, parameters: int) -> tuple[bool, tuple[str, ...]]:
        """Whether to keep copies for readers, and notes for the user.

        Args:
            live: on, off, or auto: if they take at most `LIVE_PART`.
            parameters: number in the model.
        """
        n_bytes = 2 * 4 * parameters
        if live != "auto" or n_bytes <= LIVE_PART * self.limit_bytes:
            return live != "off", ()
        return False, (
            f"no copies for live readers: the two would take {n_bytes / 2**30:.1f} GiB; --live on "
            "keeps them all the same",
        )

    def with_free_slots(
        self, strategy: Strategy, max_workers: int | None, lay_out: Callable[[Strategy], Layout]
    ) -> tuple[Strategy, Layout]:
        """Give an arena free slots for workers that join.

        Args:
            strategy: for the workers at the start.
            max_workers: workers with slots; None for as many as there is room.
            lay_out: lays out the arena of a strategy.
        """
        layout = lay_out(strategy)
        if strategy.fixed:
            return strategy, layout
        if max_workers is not None:
            larger = replace(strategy, max_workers=max_workers)
            return larger, lay_out(larger)
        most_bytes = layout.occupied_bytes + FREE_SLOTS_SHARE * self.limit_bytes
        for free in range(FREE_SLOTS, 0, -1):
            larger = replace(strategy, max_workers=strategy.workers + free)
            if (its_layout := lay_out(larger)).occupied_bytes <= most_bytes:
                return larger, its_layout
        return strategy, layout


def worker_bytes(config: TrainConfig, model: ModelConfig, layout: Layout, workers: int) -> int:
    """Private memory of a worker: snapshots, gradients, activations, and the process itself."""
    copies = 1 + (config.read != "live") + config.overlap
    strategy = config.strategy
    if isinstance(strategy, Sparse) and strategy.sparsify != "none":
        copies += not strategy.error_feedback  # steps before selection
    copies += config.prediction == "own" and workers > 1
    if isinstance(strategy, FedBack):
        copies += strategy.delay_feedback  # the correction that was added before
    per_token = ACTIVATIONS_PER_TOKEN * model.hidden_size * model.num_hidden_layers
    per_token += (4 + (config.teacher is not None)) * model.vocab_size
    tokens = config.batch_size * config.seq_len
    return WORKER_BASE_BYTES + 4 * (copies * layout.n_floats + tokens * per_token)


def gpu_share(
    config: TrainConfig,
    workers: Sequence[WorkerSpec],
    writers: Writers,
    optimizer: Optimizer,
    layout: Layout,
) -> GPUShare:
    """The share of the GPU's memory for each worker that uses it."""
    segments = int(config.read == "live")  # for the model; those of the writer follow
    if writers.gpu_write == "metal":
        segments += 1 + len(optimizer.metal_rule.private) + len(optimizer.shared_segments)
    return GPUShare(
        workers=max(1, sum(worker.backend in GPU_BACKENDS for worker in workers)),
        adopted_bytes=segments * 4 * layout.n_floats,
    )
