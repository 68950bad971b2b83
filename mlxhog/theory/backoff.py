"""The robust 1/k schedule: beta times the step for 1/beta times as long, stage after stage.

The step size itself is `mlxhog.optim.schedules.backoff`; here is what it promises. On a
c-strongly convex objective the error a_k of serial or near-serial SGD with a constant step gamma
obeys

    a_{k+1} <= (1 - c gamma) (a_k - gamma B) + gamma B

so it falls to twice its floor gamma B, and then needs a smaller step.

Source: Niu et al. 2011, arXiv:1106.5730, section 5, derived again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxhog.errors import DataError
from mlxhog.optim import schedules

BETA = schedules.best_backoff_beta()
"""The beta that minimises `bracket`: 0.37336."""


def bracket(beta: float) -> float:
    """ln(2 / beta) / (1 - beta), the factor of the rate; 1 / BETA = 2.67835 at its minimum."""
    return math.log(2.0 / beta) / (1.0 - beta)


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """The schedule for one problem.

    Attributes:
        theta: first step size times c, in (0, 1).
        c: strong convexity.
        floor: B: a constant step gamma leaves an error of gamma B.
        start: a_0, the error at the start.
        beta: factor of the step after each stage, in (0, 1).

    Raises:
        DataError: a number is outside its range.
    """

    theta: float
    c: float
    floor: float
    start: float
    beta: float = BETA

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("theta", "beta"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(f"{name} = {getattr(self, name)}: wanted a number between 0 and 1")
        for name in ("c", "floor", "start"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} = {getattr(self, name)}: wanted a number above 0")

    @property
    def burn_in(self) -> int:
        """Updates with the first step, until the error is at most twice its floor."""
        wanted = math.log(self.start * self.c / (self.theta * self.floor)) / self.theta
        return max(0, math.ceil(wanted))

    @property
    def first_stage(self) -> float:
        """Updates of the first stage after that; each later one is 1/beta times as long."""
        return math.log(2.0 / self.beta) / (self.beta * self.theta)

    def step_size(self, update: int) -> float:
        """Step size of an update, counted from 0."""
        if update < self.burn_in:
            return self.theta / self.c
        stages = schedules.backoff(
            self.beta * self.theta / self.c, steps=self.first_stage, beta=self.beta
        )
        return stages(0.0, update - self.burn_in)

    def stage_start(self, stage: int) -> float:
        """First update of a stage; stage 0 is the burn-in."""
        if stage == 0:
            return 0.0
        return self.burn_in + schedules.backoff_start(
            stage - 1, steps=self.first_stage, beta=self.beta
        )

    def error_bound(self, updates: int) -> float:
        """eps_k: at the end of each stage the error is at most this; infinite during the burn-in.

        eps_k = (2 B / c) bracket(beta) / (k - K0), with K0 the burn-in. Within a stage the error
        is still at most eps_k / beta.
        """
        if updates <= self.burn_in:
            return math.inf
        return 2 * self.floor / self.c * bracket(self.beta) / (updates - self.burn_in)
