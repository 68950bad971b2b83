"""Small objectives with known minima, and the parameters that simulated updates move.

They show the cost of a schedule in updates; times alone give only the number of updates. The
quadratic and the logistic loss are convex, unlike the loss of a neural network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import DataError

Float64 = NDArray[np.float64]


class Objective(Protocol):
    """A function to minimise by the gradients of random samples."""

    def start(self) -> Float64:
        """Return the initial parameters, (d,)."""

    def gradient(self, x: Float64, rng: np.random.Generator, rank: int) -> Float64:
        """Return an unbiased gradient at x, (d,), of a sample that a worker draws."""

    def excess(self, x: Float64) -> float:
        """Return the distance of the objective from its minimum."""


@dataclass(frozen=True)
class Quadratic:
    """f(x) = 1/2 sum_i h_i (x_i - c)^2, whose minimum is 0 at x = c; training begins at x = c + 1.

    If the workers' data differ, workers of even rank have a quadratic that is 1.5 times as steep
    with its minimum at drift, the others one that is half as steep around -drift: so c = drift / 2,
    while the mean of their minima is 0.

    Attributes:
        curvatures: h, all above 0.
        noise: standard deviation of each element of a gradient.
        touched: elements that one gradient touches, drawn at random; None for all of them.
        drift: distance of the workers' own minima from 0; 0 if all draw from the same data.
    """

    curvatures: tuple[float, ...]
    noise: float = 0.0
    touched: int | None = None
    drift: float = 0.0

    def __post_init__(self) -> None:
        """Check the shape."""
        if not self.curvatures or min(self.curvatures) <= 0:
            raise DataError(f"curvatures of {self.curvatures}: wanted one at least, all above 0")
        if self.touched is not None and not 1 <= self.touched <= len(self.curvatures):
            raise DataError(
                f"{self.touched} of {len(self.curvatures)} elements touched: wanted 1 to "
                f"{len(self.curvatures)}"
            )

    @cached_property
    def _h(self) -> Float64:
        return np.array(self.curvatures)

    def start(self) -> Float64:
        """Return the minimum plus 1, (d,)."""
        return np.full(len(self.curvatures), 1.0 + self.drift / 2)

    def gradient(self, x: Float64, rng: np.random.Generator, rank: int) -> Float64:
        """Return the gradient of the worker's quadratic with noise; sparse ones times d/touched."""
        size = len(self.curvatures)
        grad: Float64 = self._h * (x - self.drift / 2)
        if self.drift:
            sign = -1.0 if rank % 2 else 1.0
            grad = self._h * (1 + sign / 2) * (x - sign * self.drift)
        if self.noise:
            grad = grad + self.noise * rng.standard_normal(size)
        if self.touched is None:
            return grad
        rows = rng.choice(size, self.touched, replace=False)
        sparse = np.zeros(size)
        sparse[rows] = grad[rows] * (size / self.touched)
        return sparse

    def excess(self, x: Float64) -> float:
        """Return f(x)."""
        away = x - self.drift / 2
        return float(0.5 * (self._h * away) @ away)


@dataclass(frozen=True)
class SparseLogistic:
    """Logistic regression with an L2 penalty on random examples that have few features each.

    Attributes:
        examples: n.
        features: d.
        nonzeros: features of each example.
        penalty: lambda of lambda/2 |x|^2.
        seed: of the data.
    """

    examples: int
    features: int
    nonzeros: int
    penalty: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not (self.examples > 0 and 1 <= self.nonzeros <= self.features and self.penalty > 0):
            raise DataError(
                f"{self.examples} examples with {self.nonzeros} of {self.features} features and a "
                f"penalty of {self.penalty}: wanted one example at least, 1 to {self.features} "
                "features in each, and a penalty above 0"
            )

    @cached_property
    def _data(self) -> tuple[NDArray[np.int64], Float64, Float64]:
        """Features (n, k), their values (n, k), labels of -1 or 1 (n,)."""
        rng = np.random.default_rng(self.seed)
        shape = (self.examples, self.nonzeros)
        keys = rng.random((self.examples, self.features))
        index = np.argpartition(keys, self.nonzeros - 1, axis=1)[:, : self.nonzeros]
        values = rng.standard_normal(shape) / np.sqrt(self.nonzeros)
        truth = 3.0 * rng.standard_normal(self.features)
        odds = 1 / (1 + np.exp(-(values * truth[index]).sum(axis=1)))
        return index, values, np.where(rng.random(self.examples) < odds, 1.0, -1.0)

    @property
    def p_conf(self) -> float:
        """Probability that two examples share a feature."""
        n, k = self.features, self.nonzeros
        apart = np.prod([(n - k - i) / (n - i) for i in range(k)]) if n >= 2 * k else 0.0
        return float(1 - apart)

    def start(self) -> Float64:
        """Return zeros, (d,)."""
        return np.zeros(self.features)

    def gradient(self, x: Float64, rng: np.random.Generator, rank: int) -> Float64:
        """Return that of one example; the penalty is spread over the examples with a feature."""
        index, values, labels = self._data
        k = int(rng.integers(self.examples))
        rows = index[k]
        margin = labels[k] * (values[k] @ x[rows])
        sparse = np.zeros(self.features)
        sparse[rows] = -labels[k] * values[k] / (1 + np.exp(margin))
        sparse[rows] += self.penalty * x[rows] * self._spread[rows]
        return sparse

    @cached_property
    def _spread(self) -> Float64:
        """One over the share of the examples that have each feature."""
        counts = np.bincount(self._data[0].ravel(), minlength=self.features)
        return self.examples / np.maximum(counts, 1)

    def value(self, x: Float64) -> float:
        """Return the objective."""
        index, values, labels = self._data
        margins = labels * (values * x[index]).sum(axis=1)
        return float(np.logaddexp(0, -margins).mean() + 0.5 * self.penalty * x @ x)

    @cached_property
    def minimum(self) -> float:
        """The minimum, by L-BFGS on the whole data set."""
        from scipy.optimize import minimize

        index, values, labels = self._data

        def slope(x: Float64) -> Float64:
            margins = labels * (values * x[index]).sum(axis=1)
            weights = -labels / (1 + np.exp(margins)) / self.examples
            grad = self.penalty * x
            np.add.at(grad, index.ravel(), (weights[:, None] * values).ravel())
            return grad

        optimum = minimize(self.value, self.start(), jac=slope, method="L-BFGS-B")
        return float(optimum.fun)

    def excess(self, x: Float64) -> float:
        """Return the distance of the objective from its minimum."""
        return self.value(x) - self.minimum


# -- parameters that updates move ------------------------------------------------------------------

LOOKS = 10
"""Looks whose mean excess has to be at the target: a single one may be there by chance."""

DIVERGED = 1e3
"""Multiple of the first excess above which a training has diverged."""

SHARED = 0
"""The parameters of all workers; replicas of an outer loop count from 1."""


@dataclass
class Learner:
    """Parameters, their copies in the hands of workers, and plain SGD.

    Attributes:
        objective: to minimise.
        lr: step size of a gradient.
        seed: of the samples.
        target: excess at which training ends, as the mean of ten looks; None for no target.
        every: updates between two looks at the excess.
        outer_lr: step size of an outer loop; 1 sets the replicas to their mean.
        outer_momentum: Nesterov momentum of an outer loop.
        course: (seconds, gradients, excess) at every look.
        reached: seconds and gradients at which the excess fell to the target; None until then.
        diverged: whether the excess has grown a thousandfold, which ends training.
    """

    objective: Objective
    lr: float
    seed: int = 0
    target: float | None = None
    every: int = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    course: list[tuple[float, int, float]] = field(default_factory=list)
    reached: tuple[float, int] | None = None
    diverged: bool = False

    def __post_init__(self) -> None:
        """Begin with the objective's initial parameters."""
        if not self.lr > 0:
            raise DataError(f"a step size of {self.lr}: wanted more than 0")
        self._rng = np.random.default_rng([self.seed, 3])
        self._params: dict[int, Float64] = {SHARED: self.objective.start()}
        self._read: dict[int, Float64] = {}
        self._velocity = np.zeros_like(self._params[SHARED])
        self._updates = 0
        self._control: dict[int, Float64] = {}  # of SCAFFOLD: c at SHARED, c_i by replica
        self._steps: dict[int, int] = {}  # of each replica since the last merge
        self._anchors: dict[int, Float64] = {}  # the outer parameters that each replica knows
        self._sent: dict[int, Float64] = {}

    @property
    def model(self) -> Float64:
        """The parameters to evaluate: the mean of the replicas, if there are any."""
        replicas = [x for key, x in self._params.items() if key != SHARED]
        return np.mean(replicas, axis=0) if replicas else self._params[SHARED]

    def read(self, rank: int, of: int = SHARED) -> None:
        """Copy the present parameters for a worker."""
        self._read[rank] = self._params[of].copy()

    def apply(self, ranks: Sequence[int], of: int = SHARED) -> None:
        """Make a step of the mean gradient of some workers, each at the parameters it read."""
        grads = [self.objective.gradient(self._read[rank], self._rng, rank) for rank in ranks]
        step = np.mean(grads, axis=0)
        if of in self._control:
            step = step + self._control[SHARED] - self._control[of]
            self._steps[of] += 1
        self._params[of] -= self.lr * step

    def replicate(self, replicas: int, *, corrected: bool = False) -> None:
        """Make replicas of the parameters, numbered from 1."""
        for key in range(1, replicas + 1):
            self._params[key] = self._params[SHARED].copy()
            self._anchors[key] = self._params[SHARED]
        if corrected:
            self._control = {key: np.zeros_like(self._velocity) for key in self._params}
            self._steps = dict.fromkeys(self._params, 0)

    def merge(self, keys: Sequence[int]) -> None:
        """Make an outer step on the mean of some replicas, and set all replicas to the result.

        v <- beta v + D; x <- x - lr (D + beta v), D the mean distance of these replicas from x.
        Corrections: c_i <- c_i - c + (x - y_i) / (K lr), and c is their mean.

        Sources: Douillard et al. 2023, arXiv:2311.08105; Karimireddy et al. 2020, arXiv:1910.06378,
        option II.
        """
        self._correct(keys)
        self._outer(self._params[SHARED] - np.mean([self._params[key] for key in keys], axis=0))
        for key in self._params:
            if key != SHARED:
                self._params[key] = self._params[SHARED].copy()

    def send(self, keys: Sequence[int]) -> None:
        """Read some replicas for a round; one that missed rounds adds what these changed before."""
        for key in keys:
            self._params[key] += self._params[SHARED] - self._anchors[key]
            self._anchors[key] = self._params[SHARED]
            self._sent[key] = self._params[key].copy()

    def receive(self, gradients: Mapping[int, int]) -> None:
        """Make an outer step on the mean of what was sent, and add its result to those replicas.

        Args:
            gradients: of each replica in its movement, which weigh it; 0 for all is no step.
        """
        total = sum(gradients.values())
        if not total:
            return
        before = self._params[SHARED]
        gone = [before - self._sent[key] for key in gradients]
        self._outer(np.average(gone, axis=0, weights=list(gradients.values())))
        for key in gradients:
            self._anchors[key] = self._params[SHARED]
            self._params[key] += self._params[SHARED] - self._sent[key]

    def _outer(self, gone: Float64) -> None:
        self._velocity = self.outer_momentum * self._velocity + gone
        step = gone + self.outer_momentum * self._velocity
        self._params[SHARED] = self._params[SHARED] - self.outer_lr * step

    def _correct(self, keys: Sequence[int]) -> None:
        if not self._control:
            return
        for key in keys:
            if self._steps[key]:
                gone = (self._params[SHARED] - self._params[key]) / (self._steps[key] * self.lr)
                self._control[key] = self._control[key] - self._control[SHARED] + gone
                self._steps[key] = 0
        self._control[SHARED] = np.mean([self._control[key] for key in keys], axis=0)

    def note(self, seconds: float, gradients: int) -> None:
        """Count an update, and look at the excess after each `every`."""
        self._updates += 1
        if self._updates % self.every:
            return
        excess = self.objective.excess(self.model)
        if not excess <= DIVERGED * (1 + self.course[0][-1] if self.course else excess):
            self.diverged = True
            return
        self.course.append((seconds, gradients, excess))
        if self.target is not None and self.reached is None and len(self.course) >= LOOKS:
            if sum(one for *_, one in self.course[-LOOKS:]) <= LOOKS * self.target:
                self.reached = (seconds, gradients)
