"""APOLLO: gradients scaled channel by channel, by moments of a random projection (Zhu et al. 2024).

A hidden matrix G of r rows and c columns is projected along its shorter side, to rank k:

    r >= c    P (k, c)   R = G P^T   (r, k)   one factor per row
    r <  c    P (r, k)   R = P^T G   (k, c)   one factor per column

    m <- beta1 m + (1 - beta1) R            v <- beta2 v + (1 - beta2) R^2
    N = m / (sqrt(v) + eps)                 s = |N| / (|R| + 1e-8), per channel
    U = sqrt(scale) limited(G s)
    w <- (1 - lr weight_decay) (w - lr sqrt(1 - beta2^t) / (1 - beta1^t) U)

APOLLO-Mini has rank 1 and one factor for the whole matrix. `limited` lets the norm of an update
grow by at most 1 % from one step to the next. P is drawn anew every 200 steps; the moments stay as
they are. It comes from NumPy's Philox with the run's seed, the parameter's name and the number of
the drawing as key and counter, so every worker, of either framework, has the same one, also after a
resume.

All other parameters take Adam's steps with the same step size and decay.

State is private, since the limiter remembers the last update: moments of R for hidden matrices and
whole ones for the rest, and one norm per hidden matrix. P is drawn, not stored.
Source: arXiv:2412.05270; where it differs, the authors' package apollo-torch 1.0.3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.config import optimizers
from mlxhog.config.optimizer import EPS
from mlxhog.optim import metal_steps
from mlxhog.optim.adamw import moments_of
from mlxhog.optim.directions import Direction, split, write
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import Optimizer, Pairs, Shapes, Step, Target, Use, float32, rule_of
from mlxhog.optim.sgd import SGD
from mlxhog.optim.updates import Float32, Slot

Floats = NDArray[Any]

GROWTH: Final = 1.01
"""Largest factor between the norms of successive updates of a matrix."""

OFFICIAL_EPS: Final = 1e-6
"""Default of the authors' package; added to roots of second moments."""

LEAST: Final = 1e-8
"""Added to norms that divide."""


def factors_reference(
    g: Floats,
    p: Floats,
    m: Floats,
    v: Floats,
    norm: float,
    *,
    right: bool,
    tensor: bool,
    beta1: float,
    beta2: float,
    eps: float,
    scale: float,
    first: bool,
    scale_first: bool = False,
    zero_guard: bool = True,
) -> tuple[Floats, Floats, Floats, float]:
    """Return the factors of a gradient, and the new `m`, `v`, `norm`.

    Args:
        g: (r, c) gradient, in float32 or float64, the type of the results.
        p: the projection: (k, c) if `right`, (r, k) if not.
        m: first moment of the projected gradient, (r, k) if `right`, (k, c) if not.
        v: its second moment.
        norm: of the last update.
        right: whether the columns are projected.
        tensor: one factor for the matrix, (1, 1); else one per row, (r, 1), if `right`, or per
            column, (1, c).
        beta1: decay of m.
        beta2: decay of v.
        eps: added to the root of v.
        scale: its root multiplies the factors.
        first: whether this is the first update.
        scale_first: whether the limiter sees scaled updates.
        zero_guard: an update of norm 0 does not change `norm`, and the update after norm 0 counts
            as a first one. Otherwise a gradient of zeros stops a matrix for long: its update must
            grow from 1e-8 by 1 % a step.
    """
    projected = g @ p.T if right else p.T @ g
    m = beta1 * m + (1.0 - beta1) * projected
    v = beta2 * v + (1.0 - beta2) * projected**2
    axis = None if tensor else int(right)
    scaled = m / (np.sqrt(v) + eps)
    factors = _norms(scaled, axis) / (_norms(projected, axis) + LEAST)
    alpha = math.sqrt(scale)
    if scale_first:
        factors = factors * alpha
    length = float(np.linalg.norm(factors * _norms(g, axis)))
    if not (zero_guard and length == 0):
        excess = 1.0
        if not (first or (zero_guard and norm == 0)):
            excess = max(length / (norm + LEAST), GROWTH) / GROWTH
        factors, norm = factors / excess, length / excess
    return factors if scale_first else factors * alpha, m, v, norm


def _norms(x: Floats, axis: int | None) -> Floats:
    """Euclidean norms along an axis, or of the whole matrix; two dimensions."""
    norms: Floats = np.linalg.norm(x, axis=axis, keepdims=True)
    return norms


def adam_reference(
    g: Float32,
    m: Float32,
    v: Float32,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    factor: float,
    grad_scale: float,
) -> tuple[Float32, Float32, Float32]:
    """Return Adam's direction without bias correction and the new `m`, `v`, as native code does.

    With s = grad_scale * g: m and v are the exponential means of s and s^2, the direction is
    factor * m / (sqrt(v) + eps).
    """
    s: Float32 = float32(grad_scale) * g
    m = float32(beta1) * m + float32(1.0 - beta1) * s
    squared: Float32 = s * s
    v = float32(beta2) * v + float32(1.0 - beta2) * squared
    u = np.divide(m, np.sqrt(v) + float32(eps))
    return float32(factor) * u, m, v


ADAM: Final = Direction(("m", "v"), _native.adam_direction, adam_reference)


def draw_projection(slot: Slot, rank: int, refresh: int, *, seed: int, right: bool) -> Float32:
    """Draw a matrix's projection, N(0, 1 / rank): (rank, c) if `right`, (r, rank) if not.

    The same for every worker, framework and process.
    """
    digest = hashlib.sha256(slot.name.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], np.uint64)
    counter = np.array([0, 0, 0, refresh], np.uint64)  # the first words count the numbers drawn
    rows, cols = slot.shape
    shape = (rank, cols) if right else (rows, rank)
    normal = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return normal.standard_normal(shape, np.float32) / float32(math.sqrt(rank))


def _is_tall(shape: tuple[int, ...]) -> bool:
    return shape[0] >= shape[1]


@dataclass(frozen=True, kw_only=True)
class Apollo(Optimizer):
    """APOLLO for the matrices named in `hidden`, Adam for the rest; all state private.

    A gradient of some rows of a hidden matrix counts as zero in the others.

    Attributes:
        hidden: names of the matrices that are scaled by channels.
        rank: of the projections; None is a quarter of a matrix's shorter side.
        tensor: one factor for a matrix, as in APOLLO-Mini, not one per channel.
        scale: its root multiplies updates; None is the shorter side over the rank, which makes them
            as large as Adam's.
        refresh_every: steps with one projection.
        seed: of the projections.
        beta1: decay of first moments.
        beta2: decay of second moments.
        eps: added to roots of second moments.
        weight_decay: decoupled.
        scale_first: whether the limiter sees scaled updates.
        zero_guard: see `factors_reference`; False as in the authors' package.
        native: False takes the NumPy references, for one worker only.
    """

    hidden: frozenset[str]
    rank: int | None = None
    tensor: bool = False
    scale: float | None = None
    refresh_every: int = 200
    seed: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = OFFICIAL_EPS
    weight_decay: float = 0.0
    scale_first: bool = False
    zero_guard: bool = True
    native: bool = True
    state_segments: tuple[str, ...] = ("m", "v", "norm")
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD

    def state_shapes(self, shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of the state, segment -> parameter -> shape, for parameters of these shapes."""
        moments = {
            name: self._projected(shape) if name in self.hidden else shape
            for name, shape in shapes.items()
        }
        return {"m": moments, "v": moments, "norm": {name: (1,) for name in self.hidden}}

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        lr = step.lr
        correction = math.sqrt(1.0 - self.beta2**step.count) / (1.0 - self.beta1**step.count)
        step_size = lr * correction
        # SGD's write decays by step_size * weight_decay; the decay here is lr * weight_decay.
        by = SGD(weight_decay=self.weight_decay / correction, native=self.native)
        hidden, rest = split(pairs, self.hidden)
        write(target, self._rest(target, rest, step), by, step, lr=step_size)
        factors = self._factors(target, hidden, step)
        if target.metal is not None:
            for slot, g, s in factors:
                decay = lr * self.weight_decay if slot.name in target.decay else 0.0
                target.metal.scale_channels(slot, g, s, coef=-step_size, decay=decay)
            return
        scaled = ((slot, g * s) for slot, g, s in factors)
        write(target, scaled, by, step, lr=step_size)

    def _rest(
        self, target: Target, pairs: Pairs, step: Step
    ) -> Iterator[tuple[Slot, Float32 | Rows]]:
        """Adam's directions, one after another."""
        rates = {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}
        for slot, grad in pairs:
            factor = self._decay_factor(target, slot, step.lr)
            how = {**rates, "factor": factor, "grad_scale": step.grad_scale}
            yield slot, ADAM.of(target, slot, grad, how, native=self.native)

    def _factors(
        self, target: Target, pairs: list[tuple[Slot, Float32]], step: Step
    ) -> Iterator[tuple[Slot, Float32, Float32]]:
        """Each hidden matrix with its gradient and the factors of that, in turn."""
        grad_scale = step.grad_scale
        for slot, g in pairs:
            m, v, norm = (target.state(name, slot) for name in self.state_segments)
            rank = self._rank(slot.shape)
            factors, m[...], v[...], norm[0] = factors_reference(
                g if grad_scale == 1.0 else float32(grad_scale) * g,
                self._projection(slot, (step.count - 1) // self.refresh_every),
                m,
                v,
                float(norm[0]),
                right=_is_tall(slot.shape),
                tensor=self.tensor,
                beta1=self.beta1,
                beta2=self.beta2,
                eps=self.eps,
                scale=min(slot.shape) / rank if self.scale is None else self.scale,
                first=step.count == 1,
                scale_first=self.scale_first,
                zero_guard=self.zero_guard,
            )
            yield slot, g, factors * float32(grad_scale * self._decay_factor(target, slot, step.lr))

    def _decay_factor(self, target: Target, slot: Slot, lr: float) -> float:
        """Factor of an update from the weight decay that follows it."""
        return 1.0 - lr * self.weight_decay if slot.name in target.decay else 1.0

    def _rank(self, shape: tuple[int, ...]) -> int:
        return max(1, min(shape) // 4) if self.rank is None else self.rank

    def _projected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rank = self._rank(shape)
        return (shape[0], rank) if _is_tall(shape) else (rank, shape[1])

    @cached_property
    def _drawn(self) -> dict[str, tuple[int, Floats]]:
        """Each matrix's projection, with its number."""
        return {}

    def _projection(self, slot: Slot, refresh: int) -> Floats:
        number, p = self._drawn.get(slot.name, (-1, None))
        if p is None or number != refresh:
            rank, right = self._rank(slot.shape), _is_tall(slot.shape)
            p = draw_projection(slot, rank, refresh, seed=self.seed, right=right)
            self._drawn[slot.name] = refresh, p
        return p


@rule_of.register(optimizers.Projected)
def _(choice: optimizers.Projected, use: Use) -> Apollo:
    official = choice.compat == "official"
    if official and choice.eps == EPS:  # not given
        choice = replace(choice, eps=OFFICIAL_EPS)
    return Apollo(
        hidden=use.hidden,
        rank=choice.rank if isinstance(choice, optimizers.Apollo) else 1,
        tensor=isinstance(choice, optimizers.ApolloMini),
        scale=choice.scale,
        refresh_every=choice.every,
        seed=use.seed,
        zero_guard=not official,
        **moments_of(choice),
    )
