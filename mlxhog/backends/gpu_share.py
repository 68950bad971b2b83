"""One worker's share of a GPU: its memory, and the size of its pieces of work.

Work is sent to the GPU in pieces: macOS kills a process whose GPU work delays the display. A piece
is the work between two waits for the GPU. The longest time of a piece is not documented (mlx issue
3267), so the supervisor halves the pieces of a worker that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from mlxhog.data.batch import Batch
from mlxhog.errors import EnvironmentLacks

USABLE = 0.75  # share of the recommended memory; the rest is for the display and other programs
CACHE_PART = 8
MOST_CACHE_BYTES = 1 << 30
PIECE_TOKENS = 4096  # a start value: several times a training step of our largest preset
LEAST_BYTES = 64 << 20  # too little for any model
LOW_WATERMARK = 0.9  # share of the high watermark from which torch frees cached memory


@dataclass(frozen=True)
class GPUShare:
    """One worker's share of a GPU.

    Attributes:
        workers: number of processes that compute on the GPU, including this one.
        adopted_bytes: memory of the arena that the framework imports and counts as its own.
        piece_tokens: tokens of a piece, which is computed without a wait for the GPU.
    """

    workers: int = 1
    adopted_bytes: int = 0
    piece_tokens: int = PIECE_TOKENS


def limit_mlx(mx: ModuleType, share: GPUShare, *, on_gpu: bool) -> int:
    """Set MLX's memory, cache and wired limits of this process; call it before the first array.

    They hold for both devices: where there is Metal, arrays of the CPU are of the same allocator,
    whose cache may by itself grow to one and a half times the recommended memory (mlx issue 3350).

    Args:
        mx: `mlx.core`, on a machine with Metal.
        share: this worker's share of the GPU; one on the CPU gets as much as one on the GPU.
        on_gpu: whether this worker computes on the GPU, which then keeps its memory wired.

    Returns:
        The memory limit in bytes, including imported memory, which MLX counts as active
        (`MetalAllocator::make_buffer`). Above it MLX waits for the GPU after every operation.

    Raises:
        EnvironmentLacks: the GPU's memory does not suffice for this many workers.
    """
    # Without an argument it describes the default device, which may be the CPU.
    recommended = int(mx.device_info(mx.gpu)["max_recommended_working_set_size"])
    limit = int(USABLE * recommended / share.workers)
    own = limit - share.adopted_bytes
    if on_gpu and own < LEAST_BYTES:
        raise EnvironmentLacks(
            f"the GPU has {recommended / 2**30:.1f} GiB for programs; {share.workers} workers that "
            f"import {share.adopted_bytes / 2**30:.1f} GiB each leave {own / 2**30:.2f} GiB for "
            "one; use fewer GPU workers, a smaller --model, or --gpu-write cpu"
        )
    mx.set_memory_limit(limit)
    mx.set_cache_limit(min(max(own, LEAST_BYTES) // CACHE_PART, MOST_CACHE_BYTES))
    if on_gpu:
        mx.set_wired_limit(limit if share.workers == 1 else 0)  # several would compete for it
    return limit


def limit_mps(share: GPUShare) -> None:
    """Set torch's memory limit on the GPU, before torch is imported; a user's limit stays."""
    high = USABLE / share.workers
    if "PYTORCH_MPS_HIGH_WATERMARK_RATIO" not in os.environ:
        os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] = f"{high:.4f}"
        # torch refuses a low mark above the high one; its default may be above ours
        os.environ["PYTORCH_MPS_LOW_WATERMARK_RATIO"] = f"{LOW_WATERMARK * high:.4f}"


def rows(batch: Batch, share: GPUShare) -> Iterator[Batch]:
    """The batch in parts of several sequences: as many as a piece allows, at least one."""
    step = max(1, share.piece_tokens // batch.x.shape[1])
    for begin in range(0, len(batch.x), step):
        yield batch.part(begin, begin + step)


def spans(shape: tuple[int, ...], share: GPUShare) -> Iterator[slice]:
    """The positions 0 .. S - 1 of tokens (B, S) in slices, each as long as a piece allows."""
    step = max(1, share.piece_tokens // shape[0])
    for begin in range(0, shape[1], step):
        yield slice(begin, begin + step)
