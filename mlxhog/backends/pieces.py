"""Work on a GPU in pieces: macOS ends a process whose GPU work keeps the display waiting.

A piece is what is computed between two waits for the GPU. How long one may take is not documented
(mlx issue 3267), so the supervisor halves it for a worker that was ended.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxhog.backends.gpu_share import GPUShare
from mlxhog.data.batch import Batch


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
