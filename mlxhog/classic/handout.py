"""How the examples of an epoch are drawn, and dealt to the workers.

    hand-out  workers are spawned   a worker's work in an epoch
    once      once                  a contiguous share of the order
    epoch     for every epoch       the same; the spawning is part of the epoch
    queue     once                  mini-batches, claimed some at a time from a shared counter

Source: the three ways that a Python reimplementation of Hogwild compared; there the queue was a
server process and much the slowest, here it is one atomic add.
"""

from __future__ import annotations

import numpy as np

from mlxhog.classic.problem import Int32

CLAIM_EXAMPLES = 256  # at least so many at a time: one claim costs about as much as ten examples


def claim(batch: int) -> int:
    """Examples that a worker claims from the queue at a time: whole mini-batches."""
    return batch * max(1, CLAIM_EXAMPLES // batch)


def order(n: int, seed: int, epoch: int, sampling: str) -> Int32:
    """The examples of one epoch, (n,) int32, the same for the same seed and epoch.

    Args:
        n: examples.
        seed: of the run.
        epoch: from 1.
        sampling: "shuffle", each example once; or "replacement", n independent draws, as the
            theorem has it.
    """
    rng = np.random.default_rng([seed, epoch])
    if sampling == "replacement":
        return rng.integers(n, size=n, dtype=np.int32)
    return rng.permutation(np.arange(n, dtype=np.int32))


def split(start: int, count: int, parts: int) -> list[tuple[int, int]]:
    """(start, count) of contiguous parts, whose sizes differ by one at most, larger ones first."""
    least, more = divmod(count, parts)
    sizes = [least + (k < more) for k in range(parts)]
    starts = np.cumsum([start, *sizes[:-1]])
    return [(int(at), size) for at, size in zip(starts, sizes, strict=True)]
