"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from mlxhog.config import optimizers
from mlxhog.config.optimizer import Adaptive
from mlxhog.metal.kernels.step_rules import adam_hp
from mlxhog.optim import metal_steps
from mlxhog.optim.rule import Fused, Optimizer, Step, Use, rule_of
from mlxhog.optim.updates import Float32


@dataclass(frozen=True, kw_only=True)
class AdamW(Fused):
    """AdamW, with private moments or one pair for all workers.

    Bias correction counts the updates of the moments, private or shared. Rows that a
    gradient does not touch keep both moments, as in torch.optim.SparseAdam; a dense gradient decays
    all of them.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    shared: bool = False
    native: bool = True

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Private state: "m" and "v", unless they are shared."""
        return () if self.shared else ("m", "v")

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: "m" and "v", if they are."""
        return ("m", "v") if self.shared else ()

    @property
    def metal_rule(self) -> metal_steps.Rule:
        """The kernels of shared moments, or of private ones."""
        return metal_steps.ADAM_SHARED if self.shared else metal_steps.ADAM

    def rates(self, step: Step, weight_decay: float) -> Float32:
        """The step size, the decays, and the bias corrections."""
        count = step.shared_count if self.shared else step.count
        return adam_hp(
            lr=step.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=weight_decay,
            bias1=1.0 - self.beta1**count,
            bias2=1.0 - self.beta2**count,
        )


@dataclass(frozen=True, kw_only=True)
class BesideAdamW(Optimizer):
    """A rule for the matrices named in `hidden`, beside AdamW for all others.

    Attributes:
        hidden: names of the matrices.
        beta1: decay of first moments, of both rules.
        beta2: decay of second moments.
        eps: added to roots of second moments.
        weight_decay: decoupled, of both rules.
        native: False takes the NumPy references, for one worker only.
    """

    hidden: frozenset[str]
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    native: bool = True

    @cached_property
    def adamw(self) -> AdamW:
        """The rule of other parameters; its moments are shared if those of `hidden` are."""
        return AdamW(
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            shared=bool(self.shared_segments),
            native=self.native,
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
