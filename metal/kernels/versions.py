"""Version counters: how many steps have gone into a block of parameters.

Concurrency: no bump is lost. The order is relaxed, and Metal has no other: launch it after the step
it announces has finished, and take a value as "at least so many steps".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import versions_reference as reference
from mlxhog.metal.kernels.ranges import check_written, size


def version_bump(counters: Any, blocks: Any) -> Launch:
    """Launch `counters[blocks[i]] += 1` for every i, modulo 2^32; equal blocks add up.

    The output `done` is 1 for every block that was counted and 0 for one that does not exist.

    Args:
        counters: (8 or more,) uint32, shared, written in place.
        blocks: (n,) int32.

    Raises:
        ShapeError: `counters` is too small, or (NumPy only) a block has no counter.
    """
    check_written("counters", counters)
    if isinstance(blocks, np.ndarray) and blocks.size:
        low, high = int(blocks.min()), int(blocks.max())
        if low < 0 or high >= size(counters):
            raise ShapeError(
                f"blocks run from {low} to {high}; there are counters 0 to {size(counters) - 1}"
            )
    n = size(blocks)
    return Launch(
        kernel=VERSION_BUMP,
        inputs={"counters": counters, "blocks": blocks, "n": n, "n_counters": size(counters)},
        outputs={"done": (n,)},
        grid=(n, 1, 1),
    )


def _sample(rng: np.random.Generator, n: int) -> Launch:
    counters = rng.integers(0, 2**32, max(8, n), dtype=np.uint32)
    return version_bump(counters, rng.integers(0, len(counters), n, dtype=np.int32))


VERSION_BUMP = Kernel(
    name="version_bump",
    header="versions.h",
    source=(
        "mlxhog::version_bump(counters, blocks, n, n_counters, done, thread_position_in_grid.x);"
    ),
    inputs=(
        Argument(name="counters", dtype="uint32", writes=True),
        Argument(name="blocks", dtype="int32"),
        Argument(name="n", dtype="uint32", scalar=True),
        Argument(name="n_counters", dtype="uint32", scalar=True),
    ),
    outputs=(Argument(name="done", dtype="uint32"),),
    reference=reference.version_bump,
    sample=_sample,
    bytes_per_element=16,  # a block read, its counter read and written, done written
)
KERNELS = (VERSION_BUMP,)
