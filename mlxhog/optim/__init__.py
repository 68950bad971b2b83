"""Optimizers: turn a gradient into a step, and write it, fused in one pass over shared memory.

Each has a native step and a NumPy reference in one file, equal bit for bit with one worker, and
Metal kernels (`metal_steps.py`) with the same roundings.
Muon's products sum in another order than its reference, to a stated tolerance. Lion, Adan, Muon,
APOLLO and SOAP make directions and write them as SGD writes gradients.
Moments are each worker's own: every step already carries its history. Those of AdamW and Muon may
be of all workers, written under the locks of the parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mlxhog import _native
from mlxhog.config import contradictions
from mlxhog.config.config import TrainConfig
from mlxhog.config.rules import Selection
from mlxhog.errors import ConfigError
from mlxhog.optim import schedules
from mlxhog.optim.adamw import AdamW
from mlxhog.optim.adan import Adan
from mlxhog.optim.apollo import OFFICIAL_EPS, Apollo
from mlxhog.optim.delay_feedback import DelayFeedback
from mlxhog.optim.lion import Lion
from mlxhog.optim.muon import ORTHOGONALIZATIONS, Muon
from mlxhog.optim.rule import Optimizer, Target
from mlxhog.optim.sgd import SGD, Momentum
from mlxhog.optim.soap import Soap
from mlxhog.optim.sparsified import Sparsified

OPTIMIZERS: Final = (
    "adamw", "adan", "apollo", "apollo-mini", "lion", "momentum", "muon", "sgd", "soap",
)  # fmt: skip

OPEN: Final = ("lr", "beta1", "nesterov")
"""Options that `for_model` decides where nobody gives them."""

BETA1: Final = 0.9
AVERAGED_BETA1: Final = 0.75
"""Muon's where a step averages the gradients of several workers."""
NESTEROV: Final = 0.1
MANY: Final = 4
"""Workers from which on what looks ahead of the others takes the next two."""
LATE_BETA1: Final = 0.95
LATE_NESTEROV: Final = 0.15


def half_life_decay(tokens_per_step: int, half_life: int) -> float:
    """Decay per step of a mean in which a gradient has half its weight after `half_life` tokens."""
    return float(2.0 ** (-tokens_per_step / half_life))


def rule_of(name: str, hidden: frozenset[str]) -> str:
    """The optimizer of that name where it fits the model: Muon without hidden matrices is AdamW."""
    return "adamw" if name == "muon" and not hidden else name


def for_model(config: TrainConfig, width: int, hidden: frozenset[str], workers: int) -> TrainConfig:
    """The configuration with what it leaves open until model and workers are known.

    Where another rule has to take Muon's place, what only Muon has goes with it.

    Args:
        config: with an optimizer and a strategy that are not "auto".
        width: of the model.
        hidden: its hidden matrices.
        workers: of the run.
    """
    name = rule_of(config.optimizer, hidden)
    averaged = workers if config.strategy == "sync" else 1
    lr, beta1, nesterov = config.lr, config.beta1, config.nesterov
    if lr is None:
        lr = schedules.default_lr(name, width, averaged)
    late = name == "muon" and config.prediction == "last" and workers >= MANY
    if beta1 is None and name == "muon" and averaged > 1:
        beta1 = AVERAGED_BETA1
    elif beta1 is None:
        beta1 = LATE_BETA1 if late else BETA1
    if nesterov is None and name == "muon":
        nesterov = LATE_NESTEROV if late else NESTEROV
    changes: dict[str, Any] = {}
    if name != config.optimizer:
        changes = contradictions.choosing(TrainConfig, optimizer=name)
        if config.predict == "last" and config.moments != "shared":
            changes["predict"] = "auto"
    return replace(config, **{"lr": lr, "beta1": beta1, "nesterov": nesterov, **changes})


def first_decay(config: TrainConfig) -> float:
    """Decay of the first moment."""
    return BETA1 if config.beta1 is None else config.beta1


def build(
    config: TrainConfig,
    hidden: frozenset[str] = frozenset(),
    *,
    threads: int = 1,
    tokens_per_step: int | None = None,
) -> Optimizer:
    """The optimizer that `config.optimizer` names, sparsified or with feedback as it says.

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
        return DelayFeedback(rule) if config.delay_feedback else rule
    return Sparsified(rule, selection, error_feedback=config.error_feedback)


def _rule(config: TrainConfig, hidden: frozenset[str], beta2: float, threads: int) -> Optimizer:
    """The optimizer that `config.optimizer` names."""
    name, weight_decay = config.optimizer, config.weight_decay
    if name not in OPTIMIZERS:
        raise ConfigError(f"no optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    if name == "sgd":
        return SGD(weight_decay=weight_decay)
    if name == "momentum":
        return Momentum(momentum=config.momentum, weight_decay=weight_decay)
    if name == "lion":
        return Lion(beta1=first_decay(config), beta2=beta2, weight_decay=weight_decay)
    if name == "muon":
        return _muon(config, hidden, beta2, threads)
    if name in ("apollo", "apollo-mini"):
        mini, official = name == "apollo-mini", config.projection_compat == "official"
        by_default = config.eps == TrainConfig.eps  # the class has the default
        return Apollo(
            hidden=hidden,
            rank=1 if mini else config.projection_rank,
            tensor=mini,
            scale=config.projection_scale,
            refresh_every=config.projection_every,
            seed=config.seed,
            beta1=first_decay(config),
            beta2=beta2,
            eps=OFFICIAL_EPS if official and by_default else config.eps,
            weight_decay=weight_decay,
            zero_guard=not official,
        )
    if name == "adan":
        return Adan(
            beta1=first_decay(config),
            beta2=beta2,
            beta3=config.beta3,
            eps=config.eps,
            weight_decay=weight_decay,
        )
    if name == "soap":
        return Soap(
            hidden=hidden,
            beta1=first_decay(config),
            beta2=beta2,
            eps=config.eps,
            weight_decay=weight_decay,
            precondition_every=config.precondition_every,
        )
    return AdamW(
        beta1=first_decay(config),
        beta2=beta2,
        eps=config.eps,
        weight_decay=weight_decay,
        shared=config.shares_moments,
    )


def _muon(config: TrainConfig, hidden: frozenset[str], beta2: float, threads: int) -> Muon:
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
        beta1=first_decay(config),
        nesterov=NESTEROV if config.nesterov is None else config.nesterov,
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
    "OPEN", "OPTIMIZERS", "SGD", "AdamW", "Adan", "Apollo", "DelayFeedback", "Lion", "Momentum",
    "Muon", "Optimizer", "Selection", "Soap", "Sparsified", "Target", "build", "first_decay",
    "for_model", "half_life_decay", "rule_of",
]  # fmt: skip
