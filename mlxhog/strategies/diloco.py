"""DiLoCo: local steps, and an outer step along their mean (Douillard et al. 2023).

Each worker takes H steps (`--average-every`) with the optimizer of `--optimizer` on one of M
replicas (`--replicas`); the P / M workers of a replica train it lock-free. Then, with theta_s
the parameters that the round began with and v the outer momentum, 0 at first,

    D = mean over m of (theta_s - theta_m)
    v <- beta v + D
    theta_s <- theta_s - eta (D + beta v)        SGD with Nesterov momentum
    theta_m <- theta_s

Inner optimizers keep their state. The form is that of OpenDiLoCo and torchft.
With eta = 1 and beta = 0 this is local SGD but for rounding, since a - (a - b) need not be b. One
replica is useful as well: its steps are then taken as one direction (Zhang et al. 2019, Lookahead
Optimizer, arXiv:1907.08610). Source: arXiv:2311.08105.

A meeting has three stages: each worker's share of the outer step, into the parameters; its share of
the anchor and of v; the worker's replica.

    segment     dtype    meaning
    anchor      float32  theta_s (`local.py`)
    outer.v     float32  v; each worker writes its share
    outer.next  float32  v after the current outer step, likewise
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.backends.backend import Float32
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig
from mlxhog.strategies.local import ANCHOR, Anchored, Stage, keep_anchor, take_average

VELOCITY, NEXT = "outer.v", "outer.next"


def nesterov(
    anchor: Float32, velocity: Float32, mean: Float32, *, lr: float, momentum: float
) -> tuple[Float32, Float32]:
    """The outer step, also that between machines (`mlxhog/cluster/round.py`).

    Args:
        anchor: theta_s, (n,) float32.
        velocity: v, (n,) float32.
        mean: D, (n,) float32.
        lr: eta.
        momentum: beta.

    Returns:
        theta_s and v after the step, new arrays; element by element, so parts give the same bits.
    """
    rate, beta = np.float32(lr), np.float32(momentum)
    velocity = beta * velocity + mean
    ahead: Float32 = mean + beta * velocity
    return anchor - rate * ahead, velocity


def outer_step(strategy: DiLoCo, arena: Arena, rank: int) -> None:
    """First stage: a worker's share of theta_s and v after the outer step."""
    span, chosen = strategy.share(arena, rank), strategy.choice
    anchor, velocity = arena.segment(ANCHOR)[span], arena.segment(VELOCITY)[span]
    first, *others = (arena.segment(name)[span] for name in strategy.replica_segments())
    mean = anchor - first
    for other in others:
        mean += anchor - other
    if others:
        mean *= np.float32(1.0 / strategy.replicas)
    theta, velocity_after = nesterov(
        anchor, velocity, mean, lr=chosen.outer_lr, momentum=chosen.outer_momentum
    )
    np.copyto(arena.segment(NEXT)[span], velocity_after)
    np.copyto(arena.params[span], theta)


def keep_outer(strategy: DiLoCo, arena: Arena, rank: int) -> None:
    """Second stage: a worker's share of theta_s and v for the beginning of the next round."""
    span = strategy.share(arena, rank)
    keep_anchor(strategy, arena, rank)
    np.copyto(arena.segment(VELOCITY)[span], arena.segment(NEXT)[span])


class DiLoCo(Anchored):
    """Replicas whose mean movement is a step of Nesterov's momentum."""

    stages: ClassVar[tuple[Stage, ...]] = (outer_step, keep_outer, take_average)

    @property
    def replicas(self) -> int:
        """M; one for every worker unless chosen otherwise."""
        return int(self.choice.replicas or self.workers)

    def check(self, model: ModelConfig) -> None:
        """Refuse replicas with unequal numbers of workers as well.

        Raises:
            ConfigError: M does not divide the workers, or H is larger than the run.
        """
        if self.workers % self.replicas:
            divisors = [m for m in range(1, self.workers + 1) if self.workers % m == 0]
            raise ConfigError(
                f"replicas is {self.replicas}, which does not divide {self.workers} workers; take "
                f"one of {', '.join(map(str, divisors))}, or another number of workers"
            )
        if self.config.determinism == "rounds" and self.replicas < self.workers:
            raise ConfigError(
                f"determinism is rounds, and the {self.workers // self.replicas} workers of each "
                "replica train it lock-free; leave replicas out, or determinism"
            )
        super().check(model)

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {**super().segments(n_params), NEXT: ("float32", PARAMETER_COPY)}

    def kept_segments(self) -> tuple[str, ...]:
        """The replicas, theta_s and v."""
        return (*super().kept_segments(), VELOCITY)

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start without momentum."""
        super().begin(arena, position)
        if position is None:
            arena.segment(VELOCITY).fill(0.0)
