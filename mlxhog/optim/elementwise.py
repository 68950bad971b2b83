"""Element-wise optimizers, whose directions native code computes as it writes them.

SGD, momentum, Lion, AdamW and Adan are each a kernel with its moments, and its coefficients. Rows
that a gradient does not touch keep their moments, as in torch.optim.SparseAdam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from mlxhog.config.options import option
from mlxhog.optim.component import (
    Adaptive,
    Decayed,
    MomentAverages,
    OptimizerComponent,
    SharedMoments,
    like,
)
from mlxhog.optim.rule import (
    GRADIENT,
    DirectionKernel,
    ElementwiseUpdate,
    Pairs,
    UpdateStep,
    UpdateTarget,
    Write,
)


class Elementwise(OptimizerComponent):
    """An optimizer of one native kernel."""

    kernel: ClassVar[DirectionKernel] = GRADIENT

    @property
    def state_segments(self) -> tuple[str, ...]:
        return self.kernel.state

    def form(self, step: UpdateStep, decays: bool) -> ElementwiseUpdate:
        """The coefficients of an update; `decays`: weight decay applies to the parameter."""
        raise NotImplementedError

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        target.step(self.kernel, pairs, partial(self.form, step), step)


@dataclass(frozen=True, kw_only=True)
class SGD(Elementwise, Decayed):
    """`w -= lr * (g + weight_decay * w)`; no state."""

    name: ClassVar[str] = "sgd"
    title: ClassVar[str] = "plain SGD"
    about: ClassVar[str] = "plain gradient descent"

    def form(self, step: UpdateStep, decays: bool) -> ElementwiseUpdate:
        return ElementwiseUpdate(Write(step.lr, step.grad_scale, self.weight_decay * decays))


@dataclass(frozen=True, kw_only=True)
class Momentum(Elementwise, Decayed):
    """`m = momentum * m + g + weight_decay * w; w -= lr * m`, with `m` private.

    Source: torch.optim.SGD (dampening 0); its first step, m = g, is ours from m = 0.
    """

    name: ClassVar[str] = "momentum"
    title: ClassVar[str] = "SGD with momentum"
    about: ClassVar[str] = "gradient descent with momentum, as torch.optim.SGD"
    kernel: ClassVar[DirectionKernel] = DirectionKernel("momentum", ("m",))

    momentum: float = option(0.9, "share of the last update that is added again", low=0, below=1)

    def form(self, step: UpdateStep, decays: bool) -> ElementwiseUpdate:
        nesterov, decay = False, self.weight_decay * decays
        return ElementwiseUpdate(Write(step.lr), (step.grad_scale, self.momentum, nesterov, decay))


@dataclass(frozen=True, kw_only=True)
class Lion(Elementwise, MomentAverages):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675), with `m` private.

    `w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)`, where m is the EMA of g with
    decay beta2. Any gradient moves every element by lr, so P workers move it by up to P * lr while
    one computes.
    """

    name: ClassVar[str] = "lion"
    title: ClassVar[str] = "Lion"
    about: ClassVar[str] = "the sign of a momentum: every element moves by lr"
    lr_workers: ClassVar[str] = "sqrt"
    kernel: ClassVar[DirectionKernel] = DirectionKernel("lion", ("m",))

    def form(self, step: UpdateStep, decays: bool) -> ElementwiseUpdate:
        write = Write(step.lr, coupled=self.weight_decay * decays)
        return ElementwiseUpdate(write, (step.grad_scale, *self.decays))


@dataclass(frozen=True, kw_only=True)
class AdamW(SharedMoments):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Bias correction counts the updates of the moments, private or shared.
    """

    name: ClassVar[str] = "adamw"
    title: ClassVar[str] = "AdamW"
    about: ClassVar[str] = "Adam with decoupled weight decay"

    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        count = step.shared_count if self.run.shared else step.count
        bias1, bias2 = 1.0 - self.decay1**count, 1.0 - self.beta2**count
        rates = (step.grad_scale, *self.decays, 1.0 / math.sqrt(bias2), self.eps)

        def form(decays: bool) -> ElementwiseUpdate:
            decay = step.lr * self.weight_decay * decays
            return ElementwiseUpdate(Write(step.lr / bias1, decoupled=decay), rates)

        target.step(DirectionKernel("adam", ("m", "v"), self.run.shared), pairs, form, step)


class BesideAdamW(Adaptive):
    """An optimizer of hidden matrices, beside AdamW for all other parameters."""

    beside: ClassVar[str] = "adamw"

    @cached_property
    def adamw(self) -> AdamW:
        """The optimizer of other parameters, with moments shared as those of hidden matrices."""
        return like(AdamW, self)


@dataclass(frozen=True, kw_only=True)
class Adan(Elementwise, Adaptive):
    """Adan (Xie et al. 2022, arXiv:2208.06677): private `m`, `diff`, `v`, and last gradient `prev`.

    With d = g - prev, m, diff and v are the EMAs of g, d and (g + beta3 * d)^2, and
    u = (m / bias1 + beta3 * diff / bias3) / (sqrt(v / bias2) + eps). A parameter with weight decay
    becomes (w - lr * u) / (1 + lr * weight_decay). Bias corrections and this proximal decay are
    those of the authors' code, https://github.com/sail-sg/Adan; its betas (0.98, 0.92, 0.99) are
    beta1, beta3, beta2 here, so that beta2 is the decay of the second moment everywhere.
    """

    name: ClassVar[str] = "adan"
    title: ClassVar[str] = "Adan"
    about: ClassVar[str] = "means of gradients and of their differences"
    kernel: ClassVar[DirectionKernel] = DirectionKernel("adan", ("m", "diff", "v", "prev"))

    beta3: float = option(0.92, "decay of the mean of gradients' differences", low=0, below=1)

    def form(self, step: UpdateStep, decays: bool) -> ElementwiseUpdate:
        betas = (self.decay1, self.beta2, self.beta3)
        bias1, bias2, bias3 = (1.0 - beta**step.count for beta in betas)
        means = (*self.decays, self.beta3, 1.0 - self.beta3)
        steps = (1.0 / bias1, self.beta3 / bias3, 1.0 / math.sqrt(bias2))
        decay = self.weight_decay * decays
        write = Write(step.lr / (1.0 + step.lr * decay), coupled=decay)
        return ElementwiseUpdate(
            write, (step.grad_scale, *means, *steps, self.eps, step.count == 1)
        )
