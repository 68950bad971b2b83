"""One worker's share of the GPU's memory, beside the others that use the same GPU.

Work goes to the GPU in pieces: macOS ends a process whose GPU work keeps the display waiting. A
piece is what is computed between two waits for the GPU. How long one may take is not documented
(mlx issue 3267), so the supervisor halves it for a worker that was ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from mlxhog.data.batch import Batch
from mlxhog.errors import EnvironmentLacks

USABLE = 0.75  # of what the system recommends; the rest is for the display and other programs
CACHE_PART = 8
MOST_CACHE_BYTES = 1 << 30
PIECE_TOKENS = 4096  # a start value: several times a training step of our largest preset
LEAST_BYTES = 64 << 20  # too little for any model
LOW_WATERMARK = 0.9  # of the high one, where torch begins to give memory back


@dataclass(frozen=True)
class GPUShare:
    """One worker's part of the GPU.

    Attributes:
        workers: processes that compute on it, this one included.
        adopted_bytes: memory of the arena that its framework imports, which counts as its own.
        piece_tokens: tokens that are computed without a wait for the GPU, see `pieces.py`.
    """

    workers: int = 1
    adopted_bytes: int = 0
    piece_tokens: int = PIECE_TOKENS


def limit_mlx(mx: ModuleType, share: GPUShare) -> int:
    """Set MLX's memory, cache and wired limits of this process; before its first array.

    Args:
        mx: `mlx.core`.
        share: what this worker may take.

    Returns:
        The memory limit in bytes. Imported memory counts against it, as MLX counts it as active
        (`MetalAllocator::make_buffer`); above it MLX waits for the GPU after every operation.

    Raises:
        EnvironmentLacks: the GPU's memory does not suffice for this many workers.
    """
    recommended = int(mx.device_info()["max_recommended_working_set_size"])
    limit = int(USABLE * recommended / share.workers)
    own = limit - share.adopted_bytes
    if own < LEAST_BYTES:
        raise EnvironmentLacks(
            f"the GPU has {recommended / 2**30:.1f} GiB for programs; {share.workers} workers that "
            f"import {share.adopted_bytes / 2**30:.1f} GiB each leave {own / 2**30:.2f} GiB for "
            "one; use fewer GPU workers, a smaller --model, or --gpu-write cpu"
        )
    mx.set_memory_limit(limit)
    mx.set_cache_limit(min(own // CACHE_PART, MOST_CACHE_BYTES))
    mx.set_wired_limit(limit if share.workers == 1 else 0)  # several would fight for it
    return limit


def limit_mps(share: GPUShare) -> None:
    """Set torch's limit of memory on the GPU; before torch is imported. A user's own stays."""
    high = USABLE / share.workers
    if "PYTORCH_MPS_HIGH_WATERMARK_RATIO" not in os.environ:
        os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] = f"{high:.4f}"
        # torch refuses a low mark above the high one, and its default is
        os.environ["PYTORCH_MPS_LOW_WATERMARK_RATIO"] = f"{LOW_WATERMARK * high:.4f}"


def rows(batch: Batch, share: GPUShare) -> Iterator[Batch]:
    """The sequences of a batch, as many at a time as a piece holds, but at least one."""
    step = max(1, share.piece_tokens // batch.x.shape[1])
    for begin in range(0, len(batch.x), step):
        yield batch.part(begin, begin + step)


def spans(shape: tuple[int, ...], share: GPUShare) -> Iterator[slice]:
    """Positions 0 .. S - 1 of tokens (B, S), as many at a time as a piece holds."""
    step = max(1, share.piece_tokens // shape[0])
    for begin in range(0, shape[1], step):
        yield slice(begin, begin + step)
