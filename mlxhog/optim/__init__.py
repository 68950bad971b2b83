"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each has a native step and a NumPy reference in one file, equal bit for bit with one worker, and
Metal kernels (`metal_steps.py`) with the same roundings.
Muon's products sum in another order than its reference, to a stated tolerance. Lion, Adan, Muon,
APOLLO and SOAP make directions and write them as SGD writes gradients.
Moments are each worker's own: every step already carries its history. Those of AdamW and Muon may
be of all workers, written under the locks of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from mlxhog import _native
from mlxhog.config.selection import Selection
from mlxhog.errors import ConfigError
from mlxhog.optim import metal_steps
from mlxhog.optim.adamw import AdamW
from mlxhog.optim.adan import Adan
from mlxhog.optim.apollo import Apollo
from mlxhog.optim.lion import Lion
from mlxhog.optim.muon import ORTHOGONALIZATIONS, Muon
from mlxhog.optim.sgd import SGD, Momentum
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Sparsified
from mlxhog.optim.target import Target
from mlxhog.optim.updates import Grads

OPTIMIZERS: Final = (
    "adamw", "adan", "apollo", "apollo-mini", "lion", "momentum", "muon", "sgd", "soap",
)  # fmt: skip


class Optimizer(Protocol):
    """One update rule; its state lives in the arena, not in the object."""

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Private state: one segment per worker and name.

        It is laid out as the parameters, unless `state_shapes` gives it shapes of its own.
        """

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: one segment of the parameters' layout per name."""

    @property
    def metal_rule(self) -> metal_steps.Rule:
        """The kernels of the same rule, for targets with `metal`."""

    def step(
        self,
        target: Target,
        grads: Grads,
        *,
        lr: float,
        step: int,
        seed: int = 0,
        grad_scale: float = 1.0,
        shared_step: int | None = None,
    ) -> None:
        """Apply one update, in place.

        Args:
            target: the parameters, their locks, and the state.
            grads: per parameter a float32 gradient of its shape, or `Rows`; names may be missing.
            lr: step size, > 0.
            step: updates that have gone into the private state, this one included, from 1.
            seed: where to start walking; differs between workers and steps.
            grad_scale: factor of every gradient, from clipping.
            shared_step: the same count for the shared state; `step` where it is None.

        Raises:
            ShapeError: a gradient does not belong to its parameter; nothing has been written.

        Concurrency: the parameters (and shared state) are written as the arena's mode promises;
        the step is computed from the values found under the same lock that guards the write.
        """


class OptimizerConfig(Protocol):
    """The options that choose an optimizer; `mlxhog.config.config.TrainConfig` has them."""

    @property
    def optimizer(self) -> str:
        """One of `OPTIMIZERS`."""

    @property
    def seed(self) -> int:
        """Seed of APOLLO's projections."""

    @property
    def momentum(self) -> float:
        """Decay of the momentum."""

    @property
    def beta1(self) -> float:
        """Decay of the first moment."""

    @property
    def beta2(self) -> float:
        """Decay of the second moment; of Lion's mean."""

    @property
    def beta2_half_life(self) -> int | None:
        """Tokens after which a gradient has half its weight in what `beta2` decays."""

    @property
    def beta3(self) -> float:
        """Decay of Adan's mean of differences."""

    @property
    def projection_rank(self) -> int | None:
        """Rank of APOLLO's projections."""

    @property
    def projection_scale(self) -> float | None:
        """What the root of multiplies APOLLO's updates."""

    @property
    def projection_every(self) -> int:
        """Steps with one of APOLLO's projections."""

    @property
    def projection_compat(self) -> str:
        """One of guarded, official."""

    @property
    def precondition_every(self) -> int:
        """Steps between refreshes of SOAP's bases."""

    @property
    def nesterov(self) -> float:
        """Weight of the gradient itself in Muon's directions."""

    @property
    def orthogonalization(self) -> str:
        """One of polar3, ns5."""

    @property
    def orthogonalization_rows(self) -> int | None:
        """Rows that Muon orthogonalises together; None is the whole matrix."""

    @property
    def orthogonalization_every(self) -> int | None:
        """Steps from one orthogonalisation of whole matrices to the next, rows in between."""

    @property
    def orthogonalization_dtype(self) -> str:
        """One of auto, float32, bfloat16."""

    @property
    def eps(self) -> float:
        """Added to the root of the second moment."""

    @property
    def weight_decay(self) -> float:
        """Decay of the parameters in the target's decay group."""

    @property
    def shares_moments(self) -> bool:
        """Whether all workers have one pair of moments."""

    @property
    def sparsify(self) -> str:
        """What leaves a worker of a step, as `Selection.parse` reads it."""

    @property
    def error_feedback(self) -> bool:
        """Whether a sparsified step keeps what does not leave."""


def state_shapes(
    optimizer: Optimizer, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Shapes of private state that is not laid out like the parameters.

    Args:
        optimizer: whose state.
        shapes: of the parameters, by name.

    Returns:
        Segment -> parameter -> shape; segments that are laid out like the parameters are missing.
    """
    rule = optimizer.rule if isinstance(optimizer, Sparsified) else optimizer
    return rule.state_shapes(shapes) if isinstance(rule, Apollo | Soap) else {}


def half_life_decay(tokens_per_step: int, half_life: int) -> float:
    """Decay per step of a mean in which a gradient has half its weight after `half_life` tokens."""
    return float(2.0 ** (-tokens_per_step / half_life))


def build(
    config: OptimizerConfig,
    hidden: frozenset[str] = frozenset(),
    *,
    threads: int = 1,
    tokens_per_step: int | None = None,
) -> Optimizer:
    """The optimizer that `config.optimizer` names, sparsified where the configuration says so.

    Args:
        config: its options.
        hidden: the model's hidden matrices, by name, for rules that treat them apart.
        threads: that it may use.
        tokens_per_step: tokens whose mean gradient is one step, for `beta2_half_life`.

    Raises:
        ConfigError: unknown name.
    """
    beta2 = config.beta2
    if config.beta2_half_life is not None and tokens_per_step is not None:
        beta2 = half_life_decay(tokens_per_step, config.beta2_half_life)
    rule = _rule(config, hidden, beta2, threads)
    selection = Selection.parse(config.sparsify)
    if selection is None:
        return rule
    return Sparsified(rule, selection, error_feedback=config.error_feedback)


def _rule(config: OptimizerConfig, hidden: frozenset[str], beta2: float, threads: int) -> Optimizer:
    """The optimizer that `config.optimizer` names."""
    name, weight_decay = config.optimizer, config.weight_decay
    if name not in OPTIMIZERS:
        raise ConfigError(f"no optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    if name == "sgd":
        return SGD(weight_decay=weight_decay)
    if name == "momentum":
        return Momentum(momentum=config.momentum, weight_decay=weight_decay)
    if name == "lion":
        return Lion(beta1=config.beta1, beta2=beta2, weight_decay=weight_decay)
    if name == "muon":
        return _muon(config, hidden, beta2, threads)
    if name in ("apollo", "apollo-mini"):
        mini = name == "apollo-mini"
        return Apollo(
            hidden=hidden,
            rank=1 if mini else config.projection_rank,
            tensor=mini,
            scale=config.projection_scale,
            refresh_every=config.projection_every,
            seed=config.seed,
            beta1=config.beta1,
            beta2=beta2,
            eps=config.eps,
            weight_decay=weight_decay,
            zero_guard=config.projection_compat != "official",
        )
    if name == "adan":
        return Adan(
            beta1=config.beta1,
            beta2=beta2,
            beta3=config.beta3,
            eps=config.eps,
            weight_decay=weight_decay,
        )
    if name == "soap":
        return Soap(
            hidden=hidden,
            beta1=config.beta1,
            beta2=beta2,
            eps=config.eps,
            weight_decay=weight_decay,
            precondition_every=config.precondition_every,
        )
    return AdamW(
        beta1=config.beta1,
        beta2=beta2,
        eps=config.eps,
        weight_decay=weight_decay,
        shared=config.shares_moments,
    )


def _muon(config: OptimizerConfig, hidden: frozenset[str], beta2: float, threads: int) -> Muon:
    if config.orthogonalization not in ORTHOGONALIZATIONS:
        raise ConfigError(
            f"orthogonalization is {config.orthogonalization!r}; choose from "
            + ", ".join(ORTHOGONALIZATIONS)
        )
    dtype = config.orthogonalization_dtype
    if dtype == "auto":
        fast = config.orthogonalization == "polar3" and _native.bfloat16_products()
        dtype = "bfloat16" if fast else "float32"
    return Muon(
        hidden=hidden,
        beta1=config.beta1,
        nesterov=config.nesterov,
        orthogonalization=config.orthogonalization,
        rows=config.orthogonalization_rows,
        every=config.orthogonalization_every,
        bfloat16=dtype == "bfloat16",
        beta2=beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        shared=config.shares_moments,
        threads=threads,
    )


__all__ = [
    "OPTIMIZERS", "SGD", "AdamW", "Adan", "Apollo", "Lion", "Momentum", "Muon", "Optimizer",
    "OptimizerConfig", "Selection", "Soap", "Sparsified", "Target", "build", "half_life_decay",
    "state_shapes",
]  # fmt: skip
