"""The interval H, local steps between two averages: Stich's bound, and two rules for H.

Times are seconds: `step_s` of one gradient with its step, `sync_s` of one average.
"""

from __future__ import annotations

import math

from mlxhog.errors import DataError
from mlxhog.theory.bounds import Bound, Facts, assume


def stich(
    *,
    steps: int,
    workers: int,
    every: int,
    smoothness: float,
    curvature: float,
    gradient_bound: float,
    noise: float,
    distance: float,
    facts: Facts,
) -> Bound:
    """Bound the error of local SGD after T steps of each of K workers, averaged every H.

    With kappa = L / mu, a = max(16 kappa, H) and step sizes 4 / (mu (a + t)), the expected error of
    the weighted mean of all iterates is at most

        mu a^3 D^2 / (2 S) + 4 T (T + 2 a) sigma^2 / (mu K S) + 256 T G^2 H^2 L / (mu^2 S),

    S being the sum of (a + t)^2 for t < T, which is at least T^3 / 3. The second term is that of
    synchronous steps; the third is the price of local ones, and stays below it up to H of the order
    of the root of T / K. The bound is for convex problems, not for networks.

    Args:
        steps: T.
        workers: K.
        every: H.
        smoothness: L, of the gradient.
        curvature: mu > 0, of strong convexity.
        gradient_bound: G, root of the bound of E |g|^2.
        noise: sigma, of a gradient.
        distance: D, from the first iterate to the minimum.
        facts: of the problem.

    Raises:
        DataError: a number out of range.

    Source: Stich 2019, Local SGD Converges Fast and Communicates Little, arXiv:1805.09767,
    Theorem 2.2.
    """
    positive = {
        "steps": steps, "workers": workers, "every": every, "smoothness": smoothness,
        "curvature": curvature,
    }  # fmt: skip
    for name, value in positive.items():
        if not value > 0:
            raise DataError(f"{name} is {value}, expected a number above 0")
    if curvature > smoothness:
        raise DataError(f"curvature {curvature} is above smoothness {smoothness}, its limit")
    a = max(16.0 * smoothness / curvature, float(every))
    # sum of (a + t)^2 for t = 0 .. T - 1
    weights = steps * a**2 + a * steps * (steps - 1) + steps * (steps - 1) * (2 * steps - 1) / 6
    start = curvature * a**3 * distance**2 / (2 * weights)
    noisy = 4 * steps * (steps + 2 * a) * noise**2 / (curvature * workers * weights)
    drift = 256 * steps * (gradient_bound * every) ** 2 * smoothness / (curvature**2 * weights)
    return Bound(
        name="local SGD",
        source="Stich 2019, arXiv:1805.09767, Theorem 2.2",
        inputs={
            "steps": steps, "workers": workers, "every": every, "smoothness": smoothness,
            "curvature": curvature, "gradient_bound": gradient_bound, "noise": noise,
            "distance": distance,
        },
        values={"error": start + noisy + drift, "start": start, "noise": noisy, "drift": drift},
        assumptions=assume(facts, "strongly_convex", "smooth", "bounded_gradients", "sgd"),
        words="expected error of the mean iterate: of its start, of noise, and of local steps",
    )  # fmt: skip


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
