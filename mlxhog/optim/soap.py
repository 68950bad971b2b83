"""SOAP: Adam in the eigenbases of Shampoo's preconditioners (Vyas et al. 2024, arXiv:2409.11321).

A hidden matrix G of r rows and c columns, after clipping, moves by

    L <- beta2 L + (1 - beta2) G G^T        R <- beta2 R + (1 - beta2) G^T G
    m <- beta1 m + (1 - beta1) G            v <- beta2 v + (1 - beta2) (Q_L^T G Q_R)^2
    u  = Q_L ((Q_L^T m Q_R) / (sqrt(v) + eps)) Q_R^T
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) u - lr weight_decay w

Q_L and Q_R are eigenvectors of L and R. The first gradient gives L, R and, by a decomposition,
their eigenvectors; it moves nothing, so t is one less than the number of gradients. Every
`every` steps each Q takes one step of orthogonal iteration, Q <- qr(L Q), its columns
sorted by the eigenvalues that diag(Q^T L Q) estimates, and v is sorted likewise. A side longer than
`LONGEST` has no basis. All other parameters take AdamW's steps.

State is private: `m` and `v` of every parameter, `left` and `right` (L, R), `left_basis` and
`right_basis` (Q_L, Q_R) of hidden matrices.
Order and bias correction follow the authors' code, https://github.com/nikhilvyas/SOAP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mlxhog.base.late import np
from mlxhog.config.options import option
from mlxhog.optim.adamw import BesideAdamW
from mlxhog.optim.directions import split, write
from mlxhog.optim.rule import OPERATIONS, Pairs, Shapes, Step, Target, float32
from mlxhog.optim.updates import Float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlxhog.arena.layout import Slot

LONGEST: Final = 10_000
"""Longest side of a matrix that has a basis: a decomposition takes its cube of operations."""

ROUNDING: Final = 1e-3
"""Largest distance of the mean squared length of a basis's columns from 1."""

BASES: Final = (("left", "left_basis", 0), ("right", "right_basis", 1))
"""Second moments, their eigenvectors, and their axis of the matrix."""


def eigenbasis(second: Float32) -> Float32:
    """Eigenvectors of a symmetric matrix (n, n) as columns, largest eigenvalue first."""
    _, vectors = np.linalg.eigh(second.astype(np.float64))
    return np.asarray(vectors[:, ::-1], np.float32)


def refreshed(second: Float32, basis: Float32) -> tuple[Float32, NDArray[np.intp]]:
    """One step of orthogonal iteration towards the eigenvectors of a symmetric matrix.

    Returns:
        The new basis, (n, n), and for each of its columns the old column that it comes from.
    """
    moved = second @ basis
    order = np.argsort(-np.einsum("ij,ij->j", basis, moved), kind="stable")
    q, _ = np.linalg.qr(moved[:, order])
    return q, order


def is_basis(basis: Float32) -> bool:
    """Whether the columns of a matrix are orthonormal.

    Those of an average of several workers' bases are shorter; those of an unfilled one are zero.
    """
    return abs(float(np.vdot(basis, basis)) / len(basis) - 1.0) < ROUNDING


@dataclass(frozen=True, kw_only=True)
class Soap(BesideAdamW):
    """SOAP for hidden matrices, AdamW for the rest; all state private.

    A gradient of some rows of a hidden matrix counts as zero in the others. beta2 is the decay of
    second moments and of L and R.
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
        """Shapes of L, R and their bases, segment -> parameter -> shape."""
        own: dict[str, dict[str, tuple[int, ...]]] = {}
        for second, basis, axis in BASES:
            sides = {name: shapes[name][axis] for name in self.use.hidden}
            own[second] = {name: (n, n) for name, n in sides.items() if n <= LONGEST}
            own[basis] = own[second]
        return own

    def cost(self, slot: Slot) -> float:
        """Count about four products of a hidden matrix with each of its sides, too."""
        work = 8 * slot.size * sum(slot.shape) if slot.name in self.use.hidden else 0
        return slot.size + work / OPERATIONS

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        hidden, rest = split(pairs, self.use.hidden)
        self.adamw.update(target, rest, step)
        t = max(1, step.count - 1)
        correction = math.sqrt(1.0 - self.beta2**t) / (1.0 - self.decay1**t)
        directions = self._directions(target, hidden, t, step.grad_scale)
        # `write` decays by its step size times weight_decay; the decay here is by lr.
        decay = self.weight_decay / correction
        write(target, directions, step, lr=step.lr * correction, weight_decay=decay)

    def _directions(
        self, target: Target, pairs: list[tuple[Slot, Float32]], t: int, grad_scale: float
    ) -> Iterator[tuple[Slot, Float32]]:
        """Update the state of each hidden matrix; yield its direction, but for a first gradient."""
        for slot, grad in pairs:
            g = float32(grad_scale) * grad
            sides = [
                (target.state(second, slot), target.state(basis, slot), axis)
                for second, basis, axis in BASES
                if slot.name in target.places[second]
            ]
            moved = _are_ready(sides)
            if moved:
                yield slot, self._direction(target, slot, g, sides)
            for second, _, axis in sides:
                second *= float32(self.beta2)
                second += float32(1.0 - self.beta2) * (g.T @ g if axis else g @ g.T)
            if not moved:
                for second, basis, _ in sides:
                    basis[...] = eigenbasis(second)
            elif t % self.every == 0:
                v = target.state("v", slot)
                for second, basis, axis in sides:
                    basis[...], order = refreshed(second, basis)
                    v[...] = v.take(order, axis=axis)

    def _direction(
        self,
        target: Target,
        slot: Slot,
        g: Float32,
        sides: list[tuple[Float32, Float32, int]],
    ) -> Float32:
        """Update m and v, and return m, scaled in the eigenbases and turned back."""
        m, v = target.state("m", slot), target.state("v", slot)
        m *= float32(self.decay1)
        m += float32(1.0 - self.decay1) * g
        v *= float32(self.beta2)
        v += float32(1.0 - self.beta2) * np.square(_turned(g, sides))
        scaled = np.divide(_turned(m, sides), np.sqrt(v) + float32(self.eps))
        return _turned_back(scaled, sides)


def _are_ready(sides: list[tuple[Float32, Float32, int]]) -> bool:
    """Whether a matrix has bases; those that are not orthonormal are computed anew."""
    for second, basis, _ in sides:
        if not is_basis(basis):
            if not second.any():
                return False
            basis[...] = eigenbasis(second)
    return True


def _turned(x: Float32, sides: list[tuple[Float32, Float32, int]]) -> Float32:
    """Q_L^T x Q_R."""
    for _, basis, axis in sides:
        x = x @ basis if axis else basis.T @ x
    return x


def _turned_back(x: Float32, sides: list[tuple[Float32, Float32, int]]) -> Float32:
    """Q_L x Q_R^T."""
    for _, basis, axis in sides:
        x = x @ basis.T if axis else basis @ x
    return np.ascontiguousarray(x)
