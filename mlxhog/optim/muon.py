"""Muon: momentum, orthogonalized, for hidden matrices; AdamW for everything else (Jordan 2024).

A hidden matrix (r, c), with g its gradient after clipping, moves by

    m <- beta1 m + (1 - beta1) g
    x  = (1 - nesterov) m + nesterov g
    u  = 0.2 sqrt(max(r, c)) orthogonalize(x)
    w <- w - lr (u + weight_decay w)

`orthogonalize` brings the singular values of x / (1.01 |x|) near 1 by Newton-Schulz iterations and
keeps the singular vectors. The factor makes an element of u about as large as one of an AdamW
update (Liu et al. 2025, arXiv:2502.16982), so one `lr` and one `weight_decay` serve both. The rest
of the model has AdamW with the same beta1.

Each iteration is X <- (a I + b A + c A^2) X with A = X X^T, where X has its smaller side as rows.
All these A, and the factors, are polynomials of the first A, so they commute and are symmetric: the
iterations need matrices of the smaller side only, one triangle of each, and X is multiplied once,
at the end. A holds the squares of the singular values, so those below 1e-3 of the largest drown in
its rounding, which the iterations multiply by up to 134 (`polar3`) or 485 (`ns5`): a direction is
off by up to 4e-5 or 6e-4 of its largest element, in native code and in frameworks alike.

State is `m` of every parameter and `v` of those that AdamW moves, private to a worker or one for
all workers: a shared m is updated under the locks of its parameter, then x is orthogonalized
without a lock, by native code on the CPU (`on_cpu`), or by the worker's framework on its own device
(`UpdateTarget.orthogonalize`): all matrices of one shape at once, in float32. The directions are
written as those of plain SGD.

Only updates of hidden matrices are traced, because extrapolation helps for them
(`mlxhog.strategies.prediction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from mlxhog import _native
from mlxhog.config.options import option
from mlxhog.optim.component import OptimizerComponent, SharedMoments, like
from mlxhog.optim.elementwise import AdamW, BesideAdamW
from mlxhog.optim.gradients import Float32
from mlxhog.optim.rule import (
    OPERATIONS,
    Coefficients,
    DirectionKernel,
    Orthogonalize,
    Pairs,
    UpdateStep,
    UpdateTarget,
    split,
    write,
)  # fmt: skip

if TYPE_CHECKING:
    from mlxhog.arena.layout import Slot

LR: Final = 3e-3
WIDTH: Final = 128  # of the model for which a search found that learning rate; others scale it
SUBWORDS: Final = 512  # smallest vocabulary that counts as subword tokens, not bytes
SUBWORD_LR: Final = 0.0065  # as `LR`, for subword tokens
BETA1: Final = 0.75  # from 300,000 to 1,200,000 tokens; .9 costs .01 to .02 bits per byte
NESTEROV: Final = 0.1
MANY_WORKERS: Final = 4  # fewest with parameter extrapolation for which these are the defaults:
PREDICTED_BETA1: Final = 0.95
PREDICTED_NESTEROV: Final = 0.15

ORTHOGONALIZATIONS: Final[Mapping[str, Coefficients]] = {
    # The composition of three odd quintics nearest to 1 on [1e-3, 1], each fitted on the range of
    # the last one, with cushion 0.02407327424182761: the first three steps of Polar Express (Amsel
    # et al. 2025, arXiv:2505.16932). Singular values in [1e-3, 1] end in [0.134, 1.866].
    "polar3": (
        (8.287212018145626, -23.59588651909882, 17.30038731253092),
        (4.107059111542198, -2.947849916737908, 0.5448431082926598),
        (3.948690853482296, -2.9089021159629485, 0.5518191394370133),
    ),
    # Five times the same quintic (Jordan 2024, https://kellerjordan.github.io/posts/muon/).
    "ns5": ((3.4445, -4.775, 2.0315),) * 5,
}

ROOM: Final = 1.01  # keeps singular values below 1: beyond it the first step grows fast
RMS: Final = 0.2  # root mean square of an update's elements, about, over lr
MIN_NORM: Final = 1e-30  # a shorter direction, such as that of zero gradients, moves nothing
BATCH: Final = 1 << 18  # floats of directions that stay in a core's cache until they are written
DEVICE_BATCH: Final = 1 << 22  # the same on a worker's own device, for several matrices at once
MAX_DISTANCE: Final = 1e-4  # of a device's directions from the CPU's; float32 sums have 1e-6


@dataclass(frozen=True, kw_only=True)
class Muon(BesideAdamW, SharedMoments):
    """Muon for hidden matrices, AdamW for the rest; results do not depend on the threads.

    A gradient of some rows of a hidden matrix counts as zero in the others.
    """

    name: ClassVar[str] = "muon"
    title: ClassVar[str] = "Muon"
    about: ClassVar[str] = "orthogonalized momentum for hidden matrices, AdamW for the rest"
    shares_by_itself: ClassVar[bool] = True

    nesterov: float | None = option(
        None,
        "weight of the gradient itself in a direction, beside its mean; auto: 0.1, or 0.15 "
        "with parameter extrapolation for four or more workers",
        low=0, high=1, none="auto",
    )  # fmt: skip
    orthogonalization: str = option(
        "polar3", "three steps of Polar Express, or five of Newton-Schulz",
        choices=("polar3", "ns5"),
    )  # fmt: skip
    device: str = option(
        "auto",
        "where a worker orthogonalizes: on the CPU, by native code, or on its own device, by its "
        "framework; auto is worker for GPU workers",
        choices=("auto", "cpu", "worker"), flat="orthogonalization_device",
    )  # fmt: skip

    def fitted(self, *, hidden: bool, predicted: int = 1) -> OptimizerComponent:
        if not hidden:
            return like(AdamW, self).fitted(hidden=hidden, predicted=predicted)
        many = predicted >= MANY_WORKERS
        beta1 = PREDICTED_BETA1 if many else BETA1
        nesterov = PREDICTED_NESTEROV if many else NESTEROV
        return replace(
            self,
            beta1=beta1 if self.beta1 is None else self.beta1,
            nesterov=nesterov if self.nesterov is None else self.nesterov,
        )

    def default_lr(self, width: int, vocabulary: int = 0, averaged: int = 1) -> float:
        """Return the default learning rate, larger for subword tokens than for bytes.

        An update of a matrix of width d has a spectral norm of about .2 sqrt(d) lr, and its effect
        on activations should not depend on d. Source: Yang, Simon and Bernstein 2023,
        arXiv:2310.17813.
        """
        lr = LR if vocabulary < SUBWORDS else SUBWORD_LR
        return lr * math.sqrt(averaged * WIDTH / width)

    def orthogonalizes_on_worker(self, *, on_gpu: bool) -> bool:
        return on_gpu if self.device == "auto" else self.device == "worker"

    def cost(self, slot: Slot) -> float:
        """Count the matmuls of the orthogonalization of a hidden matrix, too."""
        steps = len(ORTHOGONALIZATIONS[self.orthogonalization])
        work = operations(slot.shape, steps) if slot.name in self.run.hidden else 0
        return slot.size + work / OPERATIONS

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply one update, of matrices in batches, large ones first."""
        hidden, rest = split(pairs, self.run.hidden)
        self.adamw.update(replace(target, record=None), rest, step)
        nesterov = NESTEROV if self.nesterov is None else self.nesterov
        rates = (step.grad_scale, *self.decays[:2], nesterov, 1.0 - nesterov)
        kernel = DirectionKernel("mean", ("m",), self.run.shared)
        threads, coefficients = self.run.threads, ORTHOGONALIZATIONS[self.orthogonalization]
        orthogonalize = target.orthogonalize or partial(on_cpu, threads=threads)
        for batch in _batches(hidden, DEVICE_BATCH if target.orthogonalize else BATCH * threads):
            xs = [target.direction(kernel, slot, grad, rates, step) for slot, grad in batch]
            slots = [slot for slot, _ in batch]
            scales = [RMS * math.sqrt(max(slot.shape)) for slot in slots]
            us = zip(slots, orthogonalize(xs, scales, coefficients), strict=True)
            write(target, us, step, lr=step.lr, weight_decay=self.weight_decay)


def on_cpu(
    xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients, threads: int = 1
) -> list[Float32]:
    """Orthogonalize by native code, in place: an `Orthogonalize`."""
    import numpy as np

    us = list(xs)
    _native.newton_schulz(us, us, list(scales), np.array(coefficients, np.float32), threads=threads)
    return us


def distance(orthogonalize: Orthogonalize) -> float:
    """Return how far a device's directions are from the CPU's, relative to the largest element.

    NaN if an element is. Matmuls in TF32 are far.
    """
    import numpy as np

    rng, coefficients = np.random.default_rng(0), ORTHOGONALIZATIONS["polar3"]
    shapes = ((128, 192), (192, 128), (128, 192))  # small ones may take other kernels
    xs = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    us, exact = (
        by([x.copy() for x in xs], [1.0, 2.0, 3.0], coefficients) for by in (orthogonalize, on_cpu)
    )
    pairs = zip(us, exact, strict=True)
    return float(np.max([np.abs(u - v).max() / np.abs(v).max() for u, v in pairs]))


def operations(shape: Sequence[int], steps: int) -> int:
    """Count the FLOPs of the orthogonalization of a matrix, by some quintics on one triangle."""
    n, longer = sorted(shape)
    return 3 * n * n * longer + (4 * steps - 3) * n**3


def _batches(
    pairs: Sequence[tuple[Slot, Float32]], floats: int
) -> Iterator[list[tuple[Slot, Float32]]]:
    """Cut into runs of at least this many floats, large matrices first."""
    batch: list[tuple[Slot, Float32]] = []
    for pair in sorted(pairs, key=lambda pair: (-pair[0].size, pair[0].offset)):
        batch.append(pair)
        if sum(slot.size for slot, _ in batch) >= floats:
            yield batch
            batch = []
    if batch:
        yield batch
