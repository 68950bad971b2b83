"""APOLLO: gradients scaled channel by channel, by moments of a random projection (Zhu et al. 2024).

A hidden matrix G of r rows and c columns is projected along its shorter side, to rank k:

    r >= c    P (k, c)   R = G P^T   (r, k)   one factor per row
    r <  c    P (r, k)   R = P^T G   (k, c)   one factor per column

    m <- beta1 m + (1 - beta1) R            v <- beta2 v + (1 - beta2) R^2
    N = m / (sqrt(v) + eps)                 s = |N| / (|R| + 1e-8), per channel
    U = sqrt(scale) limited(G s)
    w <- (1 - lr weight_decay) (w - lr sqrt(1 - beta2^t) / (1 - beta1^t) U)

APOLLO-Mini has rank 1 and one factor for the whole matrix. `limited` lets the norm of an update
grow by at most 1 % from one update to the next. P is drawn anew every 200 updates; the moments stay
as they are. It is not stored: NumPy's Philox, keyed by the run's seed, the parameter's name and the
number of the draw, gives every worker the same one, also after a resume.

All other parameters have Adam with the same learning rate and decay. State is private, since the
limiter needs the last update: moments of R and one norm per hidden matrix, moments of the rest.
Source: arXiv:2412.05270; where it differs, the authors' package apollo-torch 1.0.3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from mlxhog.config.options import option
from mlxhog.optim.component import Adaptive
from mlxhog.optim.gradients import Float32
from mlxhog.optim.rule import (
    DirectionKernel,
    ElementwiseUpdate,
    Pairs,
    Shapes,
    UpdateStep,
    UpdateTarget,
    Write,
    split,
    write,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlxhog.arena.layout import Slot

Floats: TypeAlias = "NDArray[Any]"

MAX_GROWTH: Final = 1.01  # largest factor between the norms of successive updates of a matrix
TINY: Final = 1e-8  # added to norms that divide


def draw_projection(slot: Slot, rank: int, refresh: int, *, seed: int, right: bool) -> Float32:
    """Draw a matrix's projection, N(0, 1 / rank): (rank, c) if `right`, (r, rank) if not."""
    import numpy as np

    digest = hashlib.sha256(slot.name.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], np.uint64)
    counter = np.array([0, 0, 0, refresh], np.uint64)  # the first words count the numbers drawn
    rows, cols = slot.shape
    shape = (rank, cols) if right else (rows, rank)
    normal = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return normal.standard_normal(shape, np.float32) / np.float32(math.sqrt(rank))


@dataclass(frozen=True, kw_only=True)
class Projected(Adaptive):
    """Channels of hidden matrices, scaled by moments of a projection; Adam for the rest.

    A gradient of some rows of a hidden matrix counts as zero in the others.

    With `zero_guard` an update of norm 0 does not change `norm`, and the one after it counts as the
    first. Without it, as in the authors' package, a gradient of zeros stops a matrix for long: its
    update must grow from 1e-8 by 1 % at a time.
    """

    beside: ClassVar[str] = "adam"
    has_own_bases: ClassVar[bool] = True
    rank: ClassVar[int | None] = None  # of projections; None is a quarter of the shorter side
    by_matrix: ClassVar[bool] = False  # one factor for a matrix, not one per channel
    zero_guard: ClassVar[bool] = True
    state_segments = ("m", "v", "norm")

    scale: float | None = option(
        None, "its root multiplies updates; auto is a matrix's shorter side over the rank",
        above=0, none="auto", flat="projection_scale",
    )  # fmt: skip
    every: int = option(
        200, "steps before a projection is drawn anew",
        unit="steps", low=1, flat="projection_every",
    )  # fmt: skip

    def state_shapes(self, shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
        moments = {
            name: self._projected(shape) if name in self.run.hidden else shape
            for name, shape in shapes.items()
        }
        return {"m": moments, "v": moments, "norm": {name: (1,) for name in self.run.hidden}}

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        correction = math.sqrt(1.0 - self.beta2**step.count) / (1.0 - self.decay1**step.count)
        size = step.lr * correction
        # A write decays by its learning rate times this; the decay here is by lr, and comes last.
        decay = self.weight_decay / correction
        rates = (step.grad_scale, *self.decays, 1.0, self.eps)

        def form(decays: bool) -> ElementwiseUpdate:
            shrunk = 1.0 - step.lr * self.weight_decay * decays
            return ElementwiseUpdate(Write(size, shrunk, decay * decays), rates)

        hidden, rest = split(pairs, self.run.hidden)
        target.step(DirectionKernel("adam", ("m", "v")), rest, form, step)
        scaled = ((slot, g * s) for slot, g, s in self._factors(target, hidden, step))
        write(target, scaled, step, lr=size, weight_decay=decay)

    def _factors(
        self, target: UpdateTarget, pairs: list[tuple[Slot, Float32]], step: UpdateStep
    ) -> Iterator[tuple[Slot, Float32, Floats]]:
        """Update the state of each hidden matrix; yield it, its gradient and the factors."""
        import numpy as np

        keep1, take1, keep2, take2 = self.decays
        for slot, grad in pairs:
            m, v, norm = (target.state(name, slot) for name in self.state_segments)
            g = grad if step.grad_scale == 1.0 else np.float32(step.grad_scale) * grad
            tall = slot.shape[0] >= slot.shape[1]
            rank = m.shape[int(tall)]
            p = self._projection(slot, step.count, rank, right=tall)
            r = g @ p.T if tall else p.T @ g
            m[...] = keep1 * m + take1 * r
            v[...] = keep2 * v + take2 * r**2
            axis = None if self.by_matrix else int(tall)  # one norm for all, per row or per column
            norms: Callable[..., Any] = partial(np.linalg.norm, axis=axis, keepdims=True)
            factors = norms(m / (np.sqrt(v) + self.eps)) / (norms(r) + TINY)
            length, before = float(np.linalg.norm(factors * norms(g))), float(norm[0])
            if not (self.zero_guard and length == 0):
                excess = 1.0
                if not (step.count == 1 or (self.zero_guard and before == 0)):
                    excess = max(length / (before + TINY), MAX_GROWTH) / MAX_GROWTH
                factors, norm[0] = factors / excess, length / excess
            scale = min(slot.shape) / rank if self.scale is None else self.scale
            shrunk = 1.0 - step.lr * self.weight_decay * (slot.name in target.decay)
            yield slot, grad, factors * math.sqrt(scale) * np.float32(step.grad_scale * shrunk)

    def _projected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rank = max(1, min(shape) // 4) if self.rank is None else self.rank
        return (shape[0], rank) if shape[0] >= shape[1] else (rank, shape[1])

    @cached_property
    def _drawn(self) -> dict[str, tuple[int, Floats]]:
        return {}

    def _projection(self, slot: Slot, count: int, rank: int, *, right: bool) -> Floats:
        refresh = (count - 1) // self.every
        if self._drawn.get(slot.name, (-1,))[0] != refresh:
            p = draw_projection(slot, rank, refresh, seed=self.run.seed, right=right)
            self._drawn[slot.name] = refresh, p
        return self._drawn[slot.name][1]


@dataclass(frozen=True, kw_only=True)
class Apollo(Projected):
    """One factor for each channel of a hidden matrix."""

    name: ClassVar[str] = "apollo"
    title: ClassVar[str] = "APOLLO"
    about: ClassVar[str] = "gradients scaled channel by channel, by moments of a projection"

    rank: int | None = option(  # type: ignore[misc]  # a number here, 1 of APOLLO-Mini
        None, "rank of projected gradients; auto is a quarter of a matrix's shorter side",
        low=1, none="auto", flat="projection_rank",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ApolloMini(Projected):
    """One factor for a hidden matrix, of a projection of rank 1."""

    name: ClassVar[str] = "apollo-mini"
    title: ClassVar[str] = "APOLLO-Mini"
    about: ClassVar[str] = "gradients scaled matrix by matrix, by moments of a projection of rank 1"
    rank: ClassVar[int | None] = 1
    by_matrix: ClassVar[bool] = True
