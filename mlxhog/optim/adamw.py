"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from mlxhog.config import optimizers
from mlxhog.config.optimizer import Adaptive
from mlxhog.optim.rule import Form, Kernel, Optimizer, Pairs, Step, Target, Use, Write, rule_of


def decays_of(beta1: float, beta2: float) -> tuple[float, float, float, float]:
    """Rates of two exponential means, as native kernels take them."""
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2


class TwoMoments(Optimizer):
    """A rule with moments "m" and "v": of each worker, or one pair for all if `shared`."""

    shared: bool

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Both, unless they are shared."""
        return () if self.shared else ("m", "v")

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Both, if they are."""
        return ("m", "v") if self.shared else ()


@dataclass(frozen=True, kw_only=True)
class AdamW(TwoMoments):
    """AdamW. Bias correction counts the updates of the moments, private or shared.

    Rows that a gradient does not touch keep both moments, as in torch.optim.SparseAdam; a dense
    gradient decays all of them.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    shared: bool = False

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        count = step.shared_count if self.shared else step.count
        bias1, bias2 = 1.0 - self.beta1**count, 1.0 - self.beta2**count
        means = decays_of(self.beta1, self.beta2)
        rates = (step.grad_scale, *means, 1.0 / math.sqrt(bias2), self.eps)

        def form(decays: bool) -> Form:
            decay = step.lr * self.weight_decay * decays
            return Form(Write(step.lr / bias1, decoupled=decay), rates)

        target.step(Kernel("adam", ("m", "v"), self.shared), pairs, form, step)


@dataclass(frozen=True, kw_only=True)
class BesideAdamW(Optimizer):
    """A rule for the matrices named in `hidden`, beside AdamW for all others.

    Attributes:
        hidden: names of the matrices.
        beta1: decay of first moments, of both rules.
        beta2: decay of second moments.
        eps: added to roots of second moments.
        weight_decay: decoupled, of both rules.
    """

    hidden: frozenset[str]
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    @cached_property
    def adamw(self) -> AdamW:
        """The rule of other parameters; its moments are shared if those of `hidden` are."""
        return AdamW(
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            shared=bool(self.shared_segments),
        )


@rule_of.register(optimizers.AdamW)
def _(choice: optimizers.AdamW, use: Use) -> AdamW:
    return AdamW(**moments_of(choice), shared=use.shared)


class Moments(TypedDict):
    """Numbers of first and second moments, and weight decay, as arguments of rules."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def moments_of(choice: Adaptive) -> Moments:
    """Return these numbers of a choice."""
    return {
        "beta1": choice.decay1,
        "beta2": choice.beta2,
        "eps": choice.eps,
        "weight_decay": choice.weight_decay,
    }
