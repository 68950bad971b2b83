"""The subject of a comparison: settings that travel by pickle, arrays that travel by file.

Names of results, the same for every side:

    hidden/0, hidden/1 ..    the residual stream (B, S, d) after the embedding and after each block
    hidden/out_norm          and after the last norm
    logits, loss             (B, S, V) after the cap; mean nats of the targets other than -100
    hidden/decoder.0 ..      between those of an auto-encoder
    state/L/PART             state of block L after the sequence; parts as `_state` in
                             `model_results.py` names them
    stepwise/logits, stepwise/state/L/PART    the same from one token at a time
    grad/NAME                gradient of the loss
    after/RULE/NAME          a parameter after some steps of an optimizer on the same batch
    step/RULE/NAME           how far those steps are from their formula, on the side's own gradients
    greedy_ids               (B, n) tokens that follow `greedy_prompt`
    init/NAME                initial value of a parameter that is not random

    FORM/h, FORM/state/PART, FORM/grad/NAME   a cell; FORM is parallel, chunkwise, recurrent, and
                                              sequence or stepwise of an sLSTM cell
    OP/y                                      an operator alone
    operator/OP                               the same beside a model, on inputs of `operators.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import did_you_mean
from mlxhog.errors import ConfigError, DataError

Array = NDArray[Any]
Results = Mapping[str, Array]

RULES = ("sgd", "momentum", "adamw")
"""Optimizers that a model is taken some steps with."""


@dataclass(frozen=True)
class ModelPlan:
    """A language model: all of its results.

    Attributes:
        cfg: the architecture, a config of a family.
        steps: updates of each optimizer; 0 for none.
        greedy: tokens to append to `greedy_prompt`; 0 where there is none.
        fixed_init: parameters whose initial values are wanted.
    """

    cfg: Any
    steps: int = 0
    greedy: int = 0
    fixed_init: tuple[str, ...] = ()


@dataclass(frozen=True)
class MlstmPlan:
    """The mLSTM cell alone, in every form; the gradient is that of sum(h * h_weight)."""

    chunk_size: int
    eps: float


@dataclass(frozen=True)
class SlstmPlan:
    """The sLSTM cell alone, over the sequence and step by step; gradient as `MlstmPlan`."""


@dataclass(frozen=True)
class ComponentsPlan:
    """Operators alone, by the names in `cell_results.py`."""

    names: tuple[str, ...]


Plan = ModelPlan | MlstmPlan | SlstmPlan | ComponentsPlan


@dataclass(frozen=True)
class Subject:
    """A computation, and what is known of its results.

    Attributes:
        title: what it is, for people.
        plan: the facts.
        inputs: parameters and other inputs, one of which `--perturb` changes, float32, by name.
        fixed: the rest: `tokens` (B, S) and `targets` (B, S) int32, -100 where nothing is scored,
            `greedy_prompt` (B, P) int32, or weights of the outputs of a cell.
        recorded: results of others by the name of their side.
        notes: what the user should know: what is not compared, and how values were made.
    """

    title: str
    plan: Plan
    inputs: dict[str, Array]
    fixed: dict[str, Array]
    recorded: Mapping[str, Results] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check(subject: Subject) -> None:
    """Refuse inputs that nothing sensible can come of.

    Raises:
        DataError: a number is not finite, or a token is out of range; named with its place.
    """
    for name, value in subject.inputs.items():
        if not np.isfinite(value).all():
            at = first(~np.isfinite(value))
            raise DataError(
                f"{name} is {value[at]} at {list(at)}; parity wants finite numbers, so look where "
                "the file comes from"
            )
    if isinstance(subject.plan, ModelPlan):
        size = subject.plan.cfg.vocab_size
        for name in ("tokens", "greedy_prompt"):
            _check_tokens(name, subject.fixed.get(name), 0, size)
        _check_tokens("targets", subject.fixed.get("targets"), -100, size)


def _check_tokens(name: str, ids: Array | None, low: int, size: int) -> None:
    if ids is None:
        return
    wrong = (ids >= size) | (ids < 0) & (ids != low)
    if wrong.any():
        at = first(wrong)
        raise DataError(
            f"{name} holds {ids[at]} at {list(at)}, wanted 0 to {size - 1}; tokens and model do "
            "not belong together"
        )


def perturbed(inputs: Mapping[str, Array], name: str, seed: int) -> Array:
    """Return the input `name` with noise of a tenth of its size on it.

    Noise, because a factor could vanish in a norm.

    Raises:
        ConfigError: there is no such input.
    """
    if name not in inputs:
        raise ConfigError(f"--perturb: no parameter {name!r}{did_you_mean(name, inputs)}")
    value = inputs[name]
    size = max(0.1 * float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))), 0.01)
    noise = np.random.default_rng(seed).normal(0, size, value.shape)
    return (value + noise).astype(value.dtype)


def parameter_after(name: str) -> str | None:
    """Return which parameter a result after/RULE/NAME is the value of; None for other results."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[2] if kind == "after" else None


def first(where: Array) -> tuple[int, ...]:
    """Index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))
