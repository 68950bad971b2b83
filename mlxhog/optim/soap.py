"""SOAP: Adam in the eigenbases of Shampoo's preconditioners (Vyas et al. 2024, arXiv:2409.11321).

A hidden matrix G of r rows and c columns, after clipping, moves by

    L <- beta2 L + (1 - beta2) G G^T        R <- beta2 R + (1 - beta2) G^T G
    m <- beta1 m + (1 - beta1) G            v <- beta2 v + (1 - beta2) (Q_L^T G Q_R)^2
    u  = Q_L ((Q_L^T m Q_R) / (sqrt(v) + eps)) Q_R^T
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) u - lr weight_decay w

Q_L and Q_R are eigenvectors of L and R. The first gradient only initializes L and R, which the
second one decomposes, so t is one less than the number of gradients. Every `every` updates each Q
takes one step of orthogonal iteration, Q <- qr(L Q), its columns sorted by the eigenvalues that
diag(Q^T L Q) estimates, and v is sorted likewise. A side above `MAX_SIDE` has no basis. All other
parameters have AdamW. State is private.
Order and bias correction follow the authors' code, https://github.com/nikhilvyas/SOAP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mlxhog.config.options import option
from mlxhog.optim.elementwise import BesideAdamW
from mlxhog.optim.gradients import Float32
from mlxhog.optim.rule import OPERATIONS, Pairs, Shapes, UpdateStep, UpdateTarget, split, write

if TYPE_CHECKING:
    from mlxhog.arena.layout import Slot

MAX_SIDE: Final = 10_000  # with a basis: a decomposition takes its cube of operations
ROUNDING: Final = 1e-3  # tolerance on the mean squared norm of a basis's columns
BASES: Final = (("left", "left_basis", 0), ("right", "right_basis", 1))
"""Second moments, their eigenvectors, and their axis of the matrix."""
Side = tuple[Float32, Float32, int]
"""A side of a matrix: its second moment and eigenvectors, (n, n), shared views; its axis."""


@dataclass(frozen=True, kw_only=True)
class Soap(BesideAdamW):
    """SOAP for hidden matrices, AdamW for the rest.

    A gradient of some rows of a hidden matrix counts as zero in the others.
    """

    name: ClassVar[str] = "soap"
    title: ClassVar[str] = "SOAP"
    about: ClassVar[str] = "Adam in eigenbases of second moments for hidden matrices, AdamW beside"
    has_own_bases: ClassVar[bool] = True

    every: int = option(
        10, "steps between two refreshes of its eigenbases",
        unit="steps", low=1, flat="precondition_every",
    )  # fmt: skip
    state_segments = ("m", "v", "left", "right", "left_basis", "right_basis")

    def state_shapes(self, shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
        own: dict[str, dict[str, tuple[int, ...]]] = {}
        for second, basis, axis in BASES:
            sides = {name: shapes[name][axis] for name in self.run.hidden}
            own[second] = own[basis] = {
                n: (size, size) for n, size in sides.items() if size <= MAX_SIDE
            }
        return own

    def cost(self, slot: Slot) -> float:
        # about four matmuls of a hidden matrix with each of its sides, too
        work = 8 * slot.size * sum(slot.shape) if slot.name in self.run.hidden else 0
        return slot.size + work / OPERATIONS

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        hidden, rest = split(pairs, self.run.hidden)
        self.adamw.update(target, rest, step)
        t = max(1, step.count - 1)
        correction = math.sqrt(1.0 - self.beta2**t) / (1.0 - self.decay1**t)
        us = self._directions(target, hidden, step)
        # `write` decays by its learning rate times weight_decay; the decay here is by lr.
        decay = self.weight_decay / correction
        write(target, us, step, lr=step.lr * correction, weight_decay=decay)

    def _directions(
        self, target: UpdateTarget, pairs: list[tuple[Slot, Float32]], step: UpdateStep
    ) -> Iterator[tuple[Slot, Float32]]:
        """Update the state of each hidden matrix; yield its direction, but for a first gradient."""
        import numpy as np

        t = max(1, step.count - 1)
        for slot, grad in pairs:
            g, v = np.float32(step.grad_scale) * grad, target.state("v", slot)
            sides = [
                (target.state(second, slot), target.state(basis, slot), axis)
                for second, basis, axis in BASES
                if slot.name in target.places[second]
            ]
            if moves := _have_bases(sides) and (bool(sides) or step.count > 1):
                yield slot, self._direction(target.state("m", slot), v, g, sides)
            for second, basis, axis in sides:
                second *= self.beta2
                second += (1.0 - self.beta2) * (g.T @ g if axis else g @ g.T)
                if moves and t % self.every == 0:  # one step of orthogonal iteration
                    product = second @ basis
                    order = np.argsort(-np.einsum("ij,ij->j", basis, product), kind="stable")
                    basis[...], _ = np.linalg.qr(product[:, order])
                    v[...] = v.take(order, axis=axis)

    def _direction(self, m: Float32, v: Float32, g: Float32, sides: list[Side]) -> Float32:
        """Update m and v, and return m, scaled in the eigenbases."""
        import numpy as np

        m *= self.decay1
        m += (1.0 - self.decay1) * g
        rotated_g, rotated_m = g, m
        for _, basis, axis in sides:
            pair = rotated_g, rotated_m
            rotated_g, rotated_m = (x @ basis if axis else basis.T @ x for x in pair)
        v *= self.beta2
        v += (1.0 - self.beta2) * np.square(rotated_g)
        u: Float32 = np.divide(rotated_m, np.sqrt(v) + self.eps)
        for _, basis, axis in sides:
            u = u @ basis.T if axis else basis @ u
        return np.ascontiguousarray(u)


def _have_bases(sides: list[Side]) -> bool:
    """Whether a matrix has had a gradient; bases that are not orthonormal are computed anew."""
    import numpy as np

    for second, basis, _ in sides:
        if abs(float(np.vdot(basis, basis)) / len(basis) - 1.0) >= ROUNDING:
            if not second.any():
                return False
            _, vectors = np.linalg.eigh(second.astype(np.float64))
            basis[...] = vectors[:, ::-1]  # the largest eigenvalue first
    return True
