"""Two rules for the interval H, the local steps between two averages.

Times are seconds: `step_s` of one gradient with its step, `sync_s` of one average.
"""

from __future__ import annotations

import math

from mlxhog.errors import DataError


def interval_by_overhead(*, step_s: float, sync_s: float, share: float = 0.1) -> int:
    """Return the least H at which averages take a share f of the time: T_s (1 - f) / (f T_c)."""
    _check_times(step_s, sync_s)
    if not 0 < share < 1:
        raise DataError(f"share is {share}, expected a part of the time between 0 and 1")
    return max(1, math.ceil(sync_s * (1 - share) / (share * step_s) - 1e-9))


def interval_by_cost(*, step_s: float, sync_s: float, growth: float) -> int:
    """Return the H with the least time to a loss, if each further local step costs steps.

    With `growth` b, a run needs 1 + b (H - 1) times the steps of a run with H = 1; two short runs
    to one loss, such as H = 1 and 16, show b. The time (T_c + T_s / H)(1 + b (H - 1)) is least at
    the root of T_s (1 - b) / (T_c b).
    """
    _check_times(step_s, sync_s)
    if not 0 < growth < 1:
        raise DataError(f"growth is {growth}, expected a part of the steps between 0 and 1")
    best = math.sqrt(sync_s * (1 - growth) / (step_s * growth))
    around = {max(1, math.floor(best)), max(1, math.ceil(best))}
    return min(
        sorted(around), key=lambda h: time_to_loss(h, step_s=step_s, sync_s=sync_s, growth=growth)
    )


def time_to_loss(every: int, *, step_s: float, sync_s: float, growth: float) -> float:
    """Return the time to a loss by that model, per step of a run with H = 1."""
    return (step_s + sync_s / every) * (1 + growth * (every - 1))


def growth_of(*, steps_apart: float, steps_together: float, every: int) -> float:
    """Return the `growth` from the steps of two runs to one loss, with interval H and with 1."""
    if every < 2 or not steps_together > 0:
        raise DataError(f"interval {every}, steps {steps_together}: expected at least 2, above 0")
    return (steps_apart / steps_together - 1) / (every - 1)


def _check_times(step_s: float, sync_s: float) -> None:
    if not (step_s > 0 and math.isfinite(step_s)):
        raise DataError(f"step_s is {step_s}, expected seconds above 0")
    if not (sync_s >= 0 and math.isfinite(sync_s)):
        raise DataError(f"sync_s is {sync_s}, expected seconds, 0 or more")
