"""One worker's share of a GPU: its memory, and the size of its pieces of work.

Work is sent to the GPU in pieces, each the work between two syncs: macOS kills a process whose GPU
work delays the display. The time limit is not documented (mlx issue 3267), so the supervisor halves
the pieces of a worker that was killed. A gradient is one piece.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models.ops.operators import MAX_SUM_TERMS

USABLE = 0.75  # share of the recommended memory; the rest is for the display and other programs
CACHE_PART = 8  # MLX's cache limit is a worker's memory / 8 until the first gradient
MAX_CACHE_BYTES = 1 << 30  # its bound
CPU_CACHE_BYTES = 32 << 20  # MLX's own limit without Metal
PIECE_TOKENS = 4096  # initial; several times a training step of our largest preset
MIN_BYTES = 64 << 20  # too little for any model
FREE_BYTES = 64 << 20  # a gradient of no more never waits, which costs a small one time
LOW_WATERMARK = 0.9  # share of the high watermark from which torch frees cached memory
WATCHDOG = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"


@dataclass(frozen=True)
class GPUShare:
    """One worker's share of a GPU."""

    workers: int = 1  # number of processes that compute on the GPU, including this one
    wrapped_bytes: int = 0  # memory of the run that the framework wraps and counts as its own
    piece_tokens: int = PIECE_TOKENS  # tokens per piece

    def own_bytes(self, recommended_bytes: int) -> int:
        """Return the memory for arrays of this worker, of the device's recommended maximum."""
        return int(USABLE * recommended_bytes / self.workers) - self.wrapped_bytes

    def rows(self, batch: Batch) -> Iterator[Batch]:
        """Split a batch into parts of as many sequences as a piece allows, at least one."""
        step = max(1, self.piece_tokens // batch.x.shape[1])
        return (batch.part(begin, begin + step) for begin in range(0, len(batch.x), step))

    def spans(self, shape: tuple[int, ...]) -> Iterator[slice]:
        """Split the positions 0 .. S - 1 of tokens (B, S) into slices as long as a piece allows."""
        step = max(1, self.piece_tokens // shape[0])
        return (slice(begin, begin + step) for begin in range(0, shape[1], step))


def recommended_bytes(backend: str) -> int:
    """Return the driver's recommended maximum memory of a backend's GPU; imports the framework."""
    if backend.startswith("mlx:"):
        import mlx.core as mx

        return _recommended_to_mlx(mx)
    import torch

    return int(torch.mps.recommended_max_memory())


def _recommended_to_mlx(mx: ModuleType) -> int:
    try:
        # Without an argument it describes the default device, which may be the CPU.
        return int(mx.device_info(mx.gpu)["max_recommended_working_set_size"])
    except RuntimeError as error:  # mlx pull request 3428; `mx.metal.is_available()` stays true
        raise EnvironmentLacks(
            f"MLX finds no Metal device ({error}), as in a sandbox or a virtual machine without a "
            "GPU; use --workers torch:cpu"
        ) from error


def relax_watchdog() -> None:
    """Relax the driver's watchdog for GPU work of this process; a user's value stays.

    Apple's driver aborts work that delays the display; it does so later if the variable is 1 when
    the process opens the GPU, so call this before a framework is imported. Apple does not document
    the variable; MLX's authors name it in mlx issue 3267, and llama.cpp sets it, too.
    """
    os.environ.setdefault(WATCHDOG, "1")


class MLXCache:
    """MLX's cache of freed arrays, which grows to the needs of the largest gradient so far.

    An array from the cache need not be zeroed by the system. MLX's own limits do not fit a run: 32
    MiB without Metal, so that each gradient asks the system again, and with Metal one and a half
    times the recommended memory (mlx issue 3350). The bytes that a gradient allocates beyond those
    in use before it are what the next gradient can use.
    """

    def __init__(
        self, mx: ModuleType, limit_bytes: int = CPU_CACHE_BYTES, max_bytes: int = sys.maxsize
    ) -> None:
        """Start from MLX's present limit; it will not grow above `max_bytes`."""
        self._mx, self.limit_bytes, self._max_bytes = mx, limit_bytes, max_bytes

    @contextmanager
    def of_gradient(self, planned_bytes: int | None = None) -> Iterator[None]:
        """Measure the memory of the gradient that the block computes, and cache that much.

        MLX allocates the results of about a hundred operations before they are computed, whatever
        the order of the graph: several chunks of logits, and activations of several blocks. Beyond
        `planned_bytes`, or `FREE_BYTES`, it waits for each of them; the bits are the same.
        """
        before_bytes = self._mx.get_active_memory()
        self._mx.reset_peak_memory()
        if planned_bytes is None:
            yield
        else:
            limit_bytes = before_bytes + max(planned_bytes, FREE_BYTES)
            previous_bytes = self._mx.set_memory_limit(limit_bytes)
            try:
                self._mx.set_memory_limit(min(limit_bytes, previous_bytes))
                yield
            finally:
                self._mx.set_memory_limit(previous_bytes)
        n_bytes = min(self._mx.get_peak_memory() - before_bytes, self._max_bytes)
        if n_bytes > self.limit_bytes:
            self.limit_bytes = n_bytes
            self._mx.set_cache_limit(n_bytes)


def limit_mlx(mx: ModuleType, share: GPUShare, *, on_gpu: bool) -> MLXCache:
    """Set MLX's memory, cache and wired limits of this process; call it before the first array.

    They hold for both devices, which share one allocator where there is Metal. The memory limit
    includes wrapped memory, which MLX counts as active (`MetalAllocator::make_buffer`). Above it
    MLX syncs after every operation. The cache that is returned may grow to the worker's own memory.

    Raises:
        EnvironmentLacks: the GPU's memory does not suffice for this many workers.
    """
    recommended = _recommended_to_mlx(mx)
    own = share.own_bytes(recommended)
    limit = own + share.wrapped_bytes
    if on_gpu and own < MIN_BYTES:
        raise EnvironmentLacks(
            f"the GPU has {recommended / 2**30:.1f} GiB for programs; {share.workers} workers that "
            f"import {share.wrapped_bytes / 2**30:.1f} GiB each leave {own / 2**30:.2f} GiB for "
            "one; use fewer GPU workers, a smaller --model, --gpu-write cpu, or, beside an "
            "adapter, --base-weights 4bit"
        )
    mx.set_memory_limit(limit)
    max_bytes = max(own, MIN_BYTES)
    cache = min(max_bytes // CACHE_PART, MAX_CACHE_BYTES)
    mx.set_cache_limit(cache)
    if on_gpu:
        mx.set_wired_limit(limit if share.workers == 1 else 0)  # several would compete for it
    return MLXCache(mx, cache, max_bytes)


def limit_mps(share: GPUShare) -> None:
    """Set torch's memory limit on the GPU, before torch is imported; a user's limit stays."""
    high = USABLE / share.workers
    if "PYTORCH_MPS_HIGH_WATERMARK_RATIO" not in os.environ:
        os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] = f"{high:.4f}"
        # torch refuses a low mark above the high one; its default may be above ours
        os.environ["PYTORCH_MPS_LOW_WATERMARK_RATIO"] = f"{LOW_WATERMARK * high:.4f}"


def max_sequences(backend: str, seq_len: int) -> int:
    """Return the most sequences of a gradient that a backend sums right, see `MAX_SUM_TERMS`."""
    return MAX_SUM_TERMS // seq_len if backend == "torch:mps" else sys.maxsize


def token_note(backends: Sequence[str], sequences: int, seq_len: int) -> str:
    """Say why one of these workers computes a batch of sequences in parts; "" if none does.

    Raises:
        ConfigError: a backend cannot sum the tokens of one sequence.
    """
    limit = min(max_sequences(backend, seq_len) for backend in backends)
    if not limit:
        raise ConfigError(
            f"seq_len is {seq_len:,}, and torch:mps sums at most {MAX_SUM_TERMS:,} tokens right in "
            "a gradient; take a smaller --seq-len, or --workers mlx:gpu"
        )
    if sequences <= limit:
        return ""
    return (
        f"workers torch:mps compute {sequences} sequences in parts of at most {limit}: they sum at "
        f"most {MAX_SUM_TERMS:,} tokens right in a gradient"
    )
