"""What is asked of a gradient before it is applied: norm, clip factor, and whether it is finite.

The norm is summed in float32 in one fixed order, so it has the same bits in every run; it differs
from `mlxhog.optim.gradients.global_norm`, which sums in float64, by rounding. Squares below 1e-38
may vanish, as a GPU flushes denormals, and above 3e38 they are infinite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import reduce_reference as reference
from mlxhog.metal.kernels.ranges import check_size, check_written, size

GROUP = reference.GROUP
BLOCK = reference.BLOCK

_N = Argument(name="n", dtype="uint32", scalar=True)
_SUMS = 'threadgroup float sums[8];\nstatic_assert(sizeof(sums) <= 32768, "too much memory");\n'


def sumsq_partial(g: Any) -> Launch:
    """Launch the sums of squares of every 4096 elements; output `part` float32, at least 1.

    Args:
        g: n values, float32, any shape.
    """
    n = size(g)
    parts = max(1, -(-n // BLOCK))
    return Launch(
        kernel=SUMSQ_PARTIAL,
        inputs={"g": g, "n": n},
        outputs={"part": (parts,)},
        grid=(parts * GROUP, 1, 1),
        group=(GROUP, 1, 1),
    )


def sumsq_final(part: Any) -> Launch:
    """Launch the root of the sum of all parts; output `norm` (1,) float32.

    Args:
        part: float32 sums of squares, of one `sumsq_partial` or of several, joined.
    """
    return Launch(
        kernel=SUMSQ_FINAL,
        inputs={"part": part, "n": size(part)},
        outputs={"norm": (1,)},
        grid=(GROUP, 1, 1),
        group=(GROUP, 1, 1),
    )


def clip_scale(norm: Any, *, max_norm: Any) -> Launch:
    """Launch the factor that brings a gradient down to `max_norm`; output `scale` (1,) float32.

    As `mlxhog.optim.gradients.clip_factor`: 1 below `max_norm` or where that is 0. A gradient that
    is not finite is to be dropped before; its norm gives 1 (NaN) or 0 (infinite).

    Args:
        norm: (1,) float32.
        max_norm: float32, at least 0.

    Raises:
        ShapeError: more than one norm.
    """
    check_size("norm", norm, 1)
    return Launch(
        kernel=CLIP_SCALE,
        inputs={"norm": norm, "max_norm": max_norm},
        outputs={"scale": (1,)},
        grid=(1, 1, 1),
        group=(1, 1, 1),
    )


def nonfinite_count(g: Any, found: Any) -> Launch:
    """Launch the count of elements that are NaN or infinite.

    The gate before every step: such an element would stay in the shared parameters for ever.

    Args:
        g: n values, float32, any shape.
        found: (8 or more,) uint32, written in place; the count is added to its first element.

    Raises:
        ShapeError: `found` is too small.

    Concurrency: launches may share a counter; none of their counts is lost.
    """
    check_written("found", found)
    n = size(g)
    return Launch(
        kernel=NONFINITE_COUNT,
        inputs={"g": g, "found": found, "n": n},
        outputs={"done": (1,)},
        grid=(n, 1, 1),
    )


def _gradient(rng: np.random.Generator, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(n, dtype=np.float32)


def _sample_partial(rng: np.random.Generator, n: int) -> Launch:
    return sumsq_partial(_gradient(rng, n))


def _sample_final(rng: np.random.Generator, n: int) -> Launch:
    return sumsq_final(np.square(_gradient(rng, n)))


def _sample_clip(rng: np.random.Generator, n: int) -> Launch:
    return clip_scale(1 + np.square(_gradient(rng, 1)), max_norm=0.5)


def _sample_nonfinite(rng: np.random.Generator, n: int) -> Launch:
    g = _gradient(rng, n)
    g[rng.random(n) < 0.1] = np.nan
    g[rng.random(n) < 0.1] = -np.inf
    return nonfinite_count(g, np.zeros(8, np.uint32))


SUMSQ_PARTIAL = Kernel(
    name="sumsq_partial",
    header="reduce.h",
    source=(
        f"{_SUMS}mlxhog::sumsq_partial(g, n, part, sums, threadgroup_position_in_grid.x, "
        "thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup);"
    ),
    inputs=(Argument(name="g"), _N),
    outputs=(Argument(name="part"),),
    reference=reference.sumsq_partial,
    sample=_sample_partial,
    lockstep=True,
    bytes_per_element=4 + 4 / BLOCK,
)
SUMSQ_FINAL = Kernel(
    name="sumsq_final",
    header="reduce.h",
    source=(
        f"{_SUMS}mlxhog::sumsq_final(part, n, norm, sums, thread_index_in_threadgroup, "
        "thread_index_in_simdgroup, simdgroup_index_in_threadgroup);"
    ),
    inputs=(Argument(name="part"), _N),
    outputs=(Argument(name="norm"),),
    reference=reference.sumsq_final,
    sample=_sample_final,
    lockstep=True,
    bytes_per_element=4,  # of one part
)
CLIP_SCALE = Kernel(
    name="clip_scale",
    header="reduce.h",
    source="mlxhog::clip_scale(norm, max_norm, scale);",
    inputs=(Argument(name="norm"), Argument(name="max_norm", scalar=True)),
    outputs=(Argument(name="scale"),),
    reference=reference.clip_scale,
    sample=_sample_clip,
)
NONFINITE_COUNT = Kernel(
    name="nonfinite_count",
    header="reduce.h",
    source="mlxhog::nonfinite_count(g, found, n, done, thread_position_in_grid.x);",
    inputs=(Argument(name="g"), Argument(name="found", dtype="uint32", writes=True), _N),
    outputs=(Argument(name="done", dtype="uint32"),),
    reference=reference.nonfinite_count,
    sample=_sample_nonfinite,
    bytes_per_element=4,
)
KERNELS = (SUMSQ_PARTIAL, SUMSQ_FINAL, CLIP_SCALE, NONFINITE_COUNT)
