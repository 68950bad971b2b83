"""How often is an update lost? Counted by a probe, in a round of its own after the last epoch.

The probe is one float that is raised by 1 in the way in which the scheme writes: by load and store
where it is racy, by compare-and-swap where it is lossless, in the own turn where there are turns;
and as often as the busiest coordinate that workers share is touched, by every n-th example, or a
thousand times if that is more. (With hot-cold the head is private between merges, so that is the
busiest of the others.) Lost is what the probe lacks in the end: at least the share that the busiest
coordinate loses, and others lose less.

The workers run through the examples as in an epoch, at step size 0, so the parameters stay as they
are and memory traffic is that of training. The round lies outside of the clock.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlxhog.classic.problem import Float32, Int32, Int64

LEAST_RAISES = 1000
MOST_EXAMPLES = 1 << 22  # below 2^24 raises, where float32 stops counting


def every(supports: tuple[Int64, Int32, int], private: int = 0) -> int | None:
    """Examples of a worker between two that raise the probe.

    Args:
        supports: of the problem.
        private: so many coordinates, the first ones, are not shared.

    Returns:
        At least 1; None where no example touches a shared coordinate.
    """
    indptr, indices, n = supports
    degrees = np.bincount(indices, minlength=n)[private:]
    examples, most = len(indptr) - 1, int(degrees.max(initial=0))
    return max(1, round(examples / max(most, LEAST_RAISES))) if most else None


def raises(done: Iterable[int], every: int) -> int:
    """Increments made by workers that did so many examples each."""
    return sum(examples // every for examples in done)


def clear(probe: Float32) -> None:
    """Set the probe, (1,), to 0; nobody may be raising it."""
    probe[0] = np.float32(0.0)


def lost(probe: Float32, raises: int) -> int:
    """Increments that never arrived, of `raises` that were made."""
    return raises - int(probe[0])
