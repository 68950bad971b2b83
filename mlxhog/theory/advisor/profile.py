"""The workload that advice is for: times of steps, costs of a round, conflicts of updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mlxhog.theory.simulator.machine import Worker
from mlxhog.training import choose_strategy

ROUNDS = 4000
"""Simulated rounds for the mean of the slowest gradient."""

LASTING = 1.5
"""Mean time of the slowest worker over the median one's above which it is a slow worker."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Properties of a workload on a machine that strategies depend on.

    Attributes:
        workers: costs of each worker's step, while all of them work.
        alone: costs of a worker's step that has the machine to itself.
        sync_s: seconds of a barrier and an average, beyond the slowest gradient (T_s).
        p_conf: probability that two updates touch a common element, weighted by parameters.
        density: share of the elements that an update touches.
        noise_scale: sequences beyond which a larger batch hardly helps; None if not measured.
        batch: sequences in a gradient.
        adaptive: whether the optimizer is an adaptive one.
        reproducible: whether the strategy has to repeat bit for bit.
        heterogeneity: zeta^2 / sigma^2, variance of the workers' mean gradients over that of a
            batch's gradient; 0 if all draw from the same data.
        backend: of a worker that trains alone; "" without a training.
    """

    workers: Sequence[Worker]
    alone: Worker
    sync_s: float
    p_conf: float = 1.0
    density: float = 1.0
    noise_scale: float | None = None
    batch: int = 1
    adaptive: bool = False
    reproducible: bool = False
    heterogeneity: float = 0.0
    backend: str = ""
    seed: int = field(default=0, repr=False)

    # -- quantities that follow ------------------------------------------------------------------

    @property
    def count(self) -> int:
        """P."""
        return len(self.workers)

    @cached_property
    def _rounds(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Compute times of many rounds, (ROUNDS, P)."""
        rng = np.random.default_rng(self.seed)
        columns = []
        for worker in self.workers:
            times = worker.compute.successive(rng)
            columns.append([next(times) for _ in range(ROUNDS)])
        return np.array(columns).T

    @property
    def mean_s(self) -> float:
        """E[X]: mean time of a gradient; all workers together compute P gradients in it."""
        return self.count / sum(1 / worker.compute.mean_s for worker in self.workers)

    @property
    def slowest_s(self) -> float:
        """E[max]: mean time of the slowest gradient of a round."""
        return float(self._rounds.max(axis=1).mean())

    @property
    def straggling(self) -> float:
        """E[max] / E[X] - 1: cost of the wait for the slowest, in gradients."""
        return self.slowest_s / self.mean_s - 1

    @property
    def overhead(self) -> float:
        """T_s / E[X]."""
        return self.sync_s / self.mean_s

    @property
    def gain(self) -> float:
        """G: the most that any method without barriers can gain over sync, as a share."""
        return self.straggling + self.overhead

    @property
    def gain_over_speed(self) -> float:
        """The same over sync by speed, as `--strategy auto` has it, with barrier and average."""
        by_speed = choose_strategy.gain(self._rounds.T.tolist(), self.batch)
        return by_speed - 1 + self.overhead

    @property
    def scaling(self) -> float:
        """Gradients per second of all workers together over those of one alone."""
        return sum(1 / worker.step_s for worker in self.workers) * self.alone.step_s

    @property
    def slow_worker(self) -> int | None:
        """The rank of a worker that is always slow; None without one."""
        means = [worker.compute.mean_s for worker in self.workers]
        rank = int(np.argmax(means))
        return rank if means[rank] > LASTING * float(np.median(means)) else None

    def period(self) -> int:
        """H: local steps after which a merge takes no more than a tenth of the time."""
        share = 0.1
        return max(1, math.ceil(self.sync_s * (1 - share) / (share * self.mean_s) - 1e-9))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, for --json."""
        same = (
            "mean_s", "slowest_s", "sync_s", "gain", "scaling", "p_conf", "density", "noise_scale",
            "heterogeneity",
        )  # fmt: skip
        return {name: getattr(self, name) for name in same} | {
            "workers": [
                {
                    "name": worker.name,
                    "mean_s": worker.compute.mean_s,
                    "cv": float(time.std() / time.mean()),
                    "min_s": float(time.min()),
                    "p95_s": float(np.quantile(time, 0.95)),
                    "p99_s": float(np.quantile(time, 0.99)),
                    **{name: getattr(worker, name) for name in ("read_s", "apply_s", "other_s")},
                }
                for worker, time in zip(self.workers, self._rounds.T, strict=True)
            ],
            "alone_step_s": self.alone.step_s,
        }
