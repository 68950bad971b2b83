"""The memory of a run: estimates, limits, and the number of free worker slots.

The arena is shared: parameters, optimizer state, snapshots for readers, and a part for each worker
slot. Snapshots, gradients, activations and the process itself are private to each worker; their
size is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog import strategies
from mlxhog.arena import Layout
from mlxhog.backends.gpu_share import USABLE, GPUShare, recommended_bytes
from mlxhog.base.workers import GPU_BACKENDS, WorkerSpec
from mlxhog.config.config import TrainConfig
from mlxhog.display.views import Tell
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.activations import Activations, activations
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.models.ops.kernels import uses_bf16_matmuls
from mlxhog.training.plan.kernel_choice import Writers

WORKER_BASE_BYTES = 400 << 20  # interpreter, framework and its first allocations
LIVE_PART = 0.1  # largest part of a run's memory for snapshots for readers, with --live auto
SURELY_RECOMMENDED = 0.5  # of a Mac's memory for its GPU: macOS recommends two thirds or more
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """The memory that a run may take, and an estimate of what a worker's gradients take."""

    machine_bytes: int
    part: float  # of it that the run may take (`memory_limit`)
    limited_by: str = "the memory of this machine"
    base_bytes: int = 0  # of the frozen weights beside an adapter, once for all workers
    copies_bytes: int = 0  # of a worker's snapshots and predictions
    kept: Activations = Activations(1.0, 0.0, 1, 1.0)  # of its gradients and activations
    seq_len: int = 1
    recompute: str = "none"  # "none" or "blocks", see `TrainConfig`

    @property
    def limit_bytes(self) -> float:
        """The memory that a run may take."""
        return self.part * self.machine_bytes

    def with_gradients(
        self, config: TrainConfig, model: ModelConfig, layout: Layout,
        workers: Sequence[tuple[str, str]], *, negatives: int = 0, recompute: str = "none",
        on_metal: bool = False,
    ) -> Memory:  # fmt: skip
        """Return this with the estimate for the worker of a run that needs the most.

        Each worker is a framework and a kernel variant; `negatives` are those of sampled softmax, 0
        for the full one; `recompute` is as of `activations`. Writes `on_metal` have directions in
        memory.
        """
        copies = (config.read != "live") + config.overlap
        copies += strategies.prediction_of(config) == "own" and len(workers) > 1
        copies += strategies.build_optimizer(config).scratch_arrays
        how: dict[str, Any] = {"length": config.seq_len, "recompute": recompute}
        if negatives:  # and at most every token is another target
            how["candidates"] = negatives + config.seq_len * config.micro_batch
        each = list[Activations]()
        for framework, kernels in dict.fromkeys(workers):
            is_bf16 = uses_bf16_matmuls(kernels, config.dtype)
            how["dtype"] = "bfloat16" if is_bf16 else "float32"
            each.append(activations(model, framework, kernels, **how))
        copies_bytes = 4 * (copies * layout.n_floats + on_metal * layout.dense_end)
        own = replace(self, copies_bytes=copies_bytes, recompute=recompute)
        memories = [replace(own, kept=kept, seq_len=config.seq_len) for kept in each]
        return max(memories, key=lambda memory: memory.of_batch(config.micro_batch))

    def of_batch(self, sequences: int) -> int:
        """Bytes of a worker's gradient of a batch of this many sequences."""
        return self.copies_bytes + self.kept.peak(sequences * self.seq_len)

    def kept_bytes(self, sequences: int) -> int:
        """Bytes that such a gradient keeps for its backward pass."""
        return int(self.kept.of(sequences * self.seq_len))

    def max_sequences(self, n_bytes: float) -> int:
        """The largest batch whose gradient fits in `n_bytes`; 0 if none does."""
        return self.kept.max_tokens(n_bytes - self.copies_bytes) // self.seq_len

    def check_parameters(self, name: str, model: ModelConfig) -> None:
        """Refuse a model whose parameters do not fit, before its blocks are listed one by one."""
        n_bytes = 4 * param_count(model)
        need = f"the parameters of model {name} alone need {n_bytes / GIB:.1f} GiB"
        self._check(n_bytes, need, "use a smaller --model")

    def check_run(self, arena_bytes: int, worker_bytes: int, workers: int) -> None:
        """Refuse a run that does not fit, at its start or with workers that join."""
        shared_bytes = arena_bytes + self.base_bytes
        n_bytes = shared_bytes + workers * worker_bytes
        need = (
            f"the run needs {n_bytes / GIB:.1f} GiB ({shared_bytes / GIB:.1f} shared, "
            f"{worker_bytes / GIB:.1f} in each of {workers} workers)"
        )
        way = f"use {self._smaller}fewer --workers, a smaller --batch-size or --model"
        self._check(n_bytes, need, way)

    @property
    def _smaller(self) -> str:
        """The first ways to need less memory, each with a comma."""
        recomputing = "--recompute blocks, " * (self.recompute == "none")
        return recomputing + "--base-weights 4bit, " * bool(self.base_bytes)

    def _check(self, n_bytes: int, need: str, way: str) -> None:
        if n_bytes > self.limit_bytes:
            raise EnvironmentLacks(
                f"{need}, the limit is {self.limit_bytes / GIB:.1f} GiB ({self.part:g} of "
                f"{self.machine_bytes / GIB:.1f}, {self.limited_by}); {way}, or raise "
                "--memory-limit"
            )

    def check_gpu(self, sequences: int, share: GPUShare, workers: Sequence[WorkerSpec]) -> None:
        """Refuse a batch whose gradient does not fit in a GPU worker's part of the GPU's memory.

        The GPU shares the machine's memory. The driver is asked only if the batch might not fit,
        since that takes half a second.
        """
        need = self.of_batch(sequences)
        if need <= share.own_bytes(int(SURELY_RECOMMENDED * self.machine_bytes)):
            return
        own = own_gpu_bytes(share, workers)
        if own is None or need <= own:
            return
        most = self.max_sequences(own)
        largest = (
            f"the largest batch that fits is {most} (--batch-size {most}), --grad-accumulation "
            "makes a step of several; or take "
        )
        raise EnvironmentLacks(
            f"batch_size is {sequences}: its gradient needs about {need / GIB:.1f} GiB on the GPU, "
            f"and a worker has {max(own, 0) / GIB:.1f} GiB ({USABLE:g} of the recommended memory, "
            f"divided by {share.workers}, without what they share); "
            f"{largest if most > 0 else 'take '}{self._smaller}a smaller --model or --seq-len"
        )

    def keeps_snapshots(self, live: str, parameters: int, note: Tell) -> bool:
        """Whether `live` keeps snapshots for readers; auto, if they take at most `LIVE_PART`."""
        n_bytes = 2 * 4 * parameters
        if live != "auto" or n_bytes <= LIVE_PART * self.limit_bytes:
            return live != "off"
        note(
            f"no snapshots for live readers: the two would take {n_bytes / GIB:.1f} GiB; --live on "
            "keeps them all the same"
        )
        return False


def gpu_share(
    config: TrainConfig,
    workers: Sequence[WorkerSpec],
    writers: Writers,
    layout: Layout,
    *,
    traces: Iterable[str],
    base_bytes: int,
) -> GPUShare:
    """The share of the GPU's memory for each worker that uses it.

    Metal writes the segments `traces`, too. Of an adapter's base MLX counts the wrapped pages;
    torch has a copy.
    """
    floats = layout.n_floats * (config.read == "live")
    if writers.gpu_write == "metal":
        own = sum(layout.segments[name].count for name in traces)
        floats += layout.n_floats + layout.dense_end + own
    return GPUShare(
        workers=max(1, sum(worker.backend in GPU_BACKENDS for worker in workers)),
        wrapped_bytes=4 * floats + base_bytes,
    )


def own_gpu_bytes(share: GPUShare, workers: Sequence[WorkerSpec]) -> int | None:
    """The memory for a GPU worker's own arrays, as its driver says; None without such workers."""
    backends = [worker.backend for worker in workers if worker.backend in GPU_BACKENDS]
    if not backends:
        return None
    from mlxhog.arena.child import START_S, Child, Failed

    try:
        with Child() as child:  # this process imports no framework
            asked = child.call(START_S, _recommended_bytes, backends[0])
    except Failed as failure:
        raise EnvironmentLacks(
            f"{backends[0]} does not say how much memory the GPU has: {failure}; see mlxhog doctor"
        ) from failure
    return share.own_bytes(asked)


def _recommended_bytes(_: object, backend: str) -> int:
    return recommended_bytes(backend)
