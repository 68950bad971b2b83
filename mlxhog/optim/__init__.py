"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each has a native step and a NumPy reference in one file, equal bit for bit with one worker, and
Metal kernels (`metal_steps.py`) with the same roundings.
Muon's products sum in another order than its reference, to a stated tolerance.
Moments are each worker's own: every step already carries its history. Those of AdamW and Muon may
be of all workers, written under the locks of the parameters.
"""

from __future__ import annotations

from typing import Protocol

from mlxhog import _native
from mlxhog.config.selection import Selection
from mlxhog.errors import ConfigError
from mlxhog.optim import metal_steps
from mlxhog.optim.adamw import AdamW
from mlxhog.optim.muon import ORTHOGONALIZATIONS, Muon
from mlxhog.optim.sgd import SGD, Momentum
from mlxhog.optim.sparsified import Sparsified
from mlxhog.optim.target import Target
from mlxhog.optim.updates import Grads


class Optimizer(Protocol):
    """One update rule; its state lives in the arena, not in the object."""

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Private state: one segment of the parameters' layout per worker and name."""

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
        """One of sgd, momentum, adamw, muon."""

    @property
    def momentum(self) -> float:
        """Decay of the momentum."""

    @property
    def beta1(self) -> float:
        """Decay of AdamW's and Muon's first moment."""

    @property
    def beta2(self) -> float:
        """Decay of AdamW's second moment."""

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


def build(
    config: OptimizerConfig, hidden: frozenset[str] = frozenset(), *, threads: int = 1
) -> Optimizer:
    """The optimizer that `config.optimizer` names, sparsified where the configuration says so.

    Args:
        config: its options.
        hidden: the model's hidden matrices, by name, which Muon orthogonalises.
        threads: that it may use.

    Raises:
        ConfigError: unknown name.
    """
    rule = _rule(config, hidden, threads)
    selection = Selection.parse(config.sparsify)
    if selection is None:
        return rule
    return Sparsified(rule, selection, error_feedback=config.error_feedback)


def _rule(config: OptimizerConfig, hidden: frozenset[str], threads: int) -> Optimizer:
    """The optimizer that `config.optimizer` names."""
    if config.optimizer == "sgd":
        return SGD(weight_decay=config.weight_decay)
    if config.optimizer == "momentum":
        return Momentum(momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "muon":
        return _muon(config, hidden, threads)
    if config.optimizer != "adamw":
        raise ConfigError(
            f"no optimizer {config.optimizer!r}; choose from adamw, momentum, muon, sgd"
        )
    return AdamW(
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        shared=config.shares_moments,
    )


def _muon(config: OptimizerConfig, hidden: frozenset[str], threads: int) -> Muon:
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
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        shared=config.shares_moments,
        threads=threads,
    )


__all__ = [
    "SGD", "AdamW", "Momentum", "Muon", "Optimizer", "OptimizerConfig", "Selection", "Sparsified",
    "Target", "build",
]  # fmt: skip
