"""A small convex objective, and the parameters that simulated updates move."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """f(x) = 1/2 sum_i h_i x_i^2, whose minimum is 0 at x = 0; training begins at x = 1."""

    curvatures: tuple[float, ...]  # h, all above 0
    noise: float = 0.0  # standard deviation of each element of a gradient

    @cached_property
    def h(self) -> Float64:
        """The curvatures, (d,)."""
        return np.array(self.curvatures)

    def start(self) -> Float64:
        """Return ones, (d,)."""
        return np.ones(len(self.curvatures))

    def gradient(self, x: Float64, rng: np.random.Generator, rank: int) -> Float64:
        """Return the gradient with noise."""
        grad: Float64 = self.h * x
        return grad + self.noise * rng.standard_normal(len(x)) if self.noise else grad

    def suboptimality_gap(self, x: Float64) -> float:
        """Return f(x) - f*, which is f(x)."""
        return float(0.5 * (self.h * x) @ x)


WINDOW = 10  # evaluations whose mean has to reach the target: a single one may by chance
DIVERGED = 1e3  # multiple of the first suboptimality gap above which training has diverged
SHARED = 0  # the parameters of all workers; copies of an outer loop count from 1


class SimulatedSGD:
    """Parameters, their copies in the hands of workers, and plain SGD with learning rate `lr`.

    Training ends when the mean suboptimality gap of ten evaluations, one after each `every`
    updates, is at `target` (None: no target), or when the gap has grown a thousandfold.
    """

    def __init__(
        self,
        objective: Quadratic,
        lr: float,
        seed: int = 0,
        target: float | None = None,
        every: int = 1,
    ) -> None:
        self.objective, self.lr, self.target, self.every = objective, lr, target, every
        self.params = {SHARED: objective.start()}  # by copy
        self.reached: tuple[float, int] | None = None  # seconds and gradients, at the target
        self.ended = False
        self._rng = np.random.default_rng([seed, 3])
        self._read: dict[int, Float64] = {}  # by rank of the worker
        self._updates, self._first = 0, 0.0
        self._gaps: deque[float] = deque(maxlen=WINDOW)

    @property
    def model(self) -> Float64:
        """The parameters to evaluate: the mean of the copies, if there are any."""
        copies = [x for key, x in self.params.items() if key != SHARED]
        return np.mean(copies, axis=0) if copies else self.params[SHARED]

    def read(self, rank: int, of: int) -> None:
        """Copy the present parameters for a worker."""
        self._read[rank] = self.params[of].copy()

    def apply(self, ranks: Sequence[int], of: int = SHARED) -> None:
        """Make a step of the mean gradient of some workers, each at the parameters it read."""
        self.params[of] -= self.lr * self.mean_gradient(ranks)

    def mean_gradient(self, ranks: Sequence[int]) -> Float64:
        """Return the mean gradient of some workers, each at the parameters it read, (d,)."""
        grads = [self.objective.gradient(self._read[rank], self._rng, rank) for rank in ranks]
        mean: Float64 = np.mean(grads, axis=0)
        return mean

    def replicate(self, copies: int) -> None:
        """Make copies of the parameters, numbered from 1."""
        self.params |= {key: self.params[SHARED].copy() for key in range(1, copies + 1)}

    def merge(self, keys: Sequence[int]) -> None:
        """Set all copies to the mean of some."""
        mean = np.mean([self.params[key] for key in keys], axis=0)
        self.params = {key: mean.copy() for key in self.params}

    def evaluate(self, seconds: float, gradients: int) -> None:
        """Count an update, and evaluate the model after each `every`."""
        self._updates += 1
        if self._updates % self.every:
            return
        gap = self.objective.suboptimality_gap(self.model)
        self._first = self._first or gap
        self._gaps.append(gap)
        if self.target is not None and len(self._gaps) == WINDOW:
            if sum(self._gaps) <= WINDOW * self.target:
                self.reached = (seconds, gradients)
        self.ended = self.reached is not None or not gap <= DIVERGED * (1 + self._first)
