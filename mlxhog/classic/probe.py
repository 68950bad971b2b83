"""How often is an update lost? Counted by a probe, in a round of its own after the last epoch.

The probe is one float that every example raises by 1, in the way in which the scheme writes: by
load and store where it is racy, by compare-and-swap where it is lossless, in the own turn where
there are turns. The workers run through examples as in an epoch, at step size 0, so the parameters
stay as they are and memory traffic is that of training. Lost is what the probe lacks in the end.

A coordinate of the problem loses less: this is one that all examples touch, the worst there can be
(Delta = 1). The round lies outside of the clock, since such a coordinate would slow all others.
"""

from __future__ import annotations

import numpy as np

from mlxhog.classic.problem import Float32

MOST_RAISES = 1_000_000  # below 2^24, where float32 stops counting


def clear(probe: Float32) -> None:
    """Set the probe, (1,), to 0; nobody may be raising it."""
    probe[0] = np.float32(0.0)


def lost(probe: Float32, raises: int) -> int:
    """Increments that never arrived, of `raises` that were made."""
    return raises - int(probe[0])
