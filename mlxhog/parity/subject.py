"""The subject of a comparison, and the sides that compute it.

Processes get the settings of a subject by pickle and its arrays by file. Its sides are

    numpy                   float64, the reference of the others
    torch:cpu, mlx:cpu ..   a backend with the kernels that training would use there
    torch:cpu+reference     the same backend with another form of its kernels

Names of results, the same for every side:

    hidden/0, hidden/1 ..    the residual stream (B, S, d) after the embedding and after each block
    hidden/out_norm          and after the last norm
    logits, loss             (B, S, V) after the cap; mean nats of the targets other than -100
    hidden/decoder.0 ..      between those of an auto-encoder
    state/L/PART             state of block L after the sequence; `_state` in `results.py` names
                             its parts
    stepwise/logits, stepwise/state/L/PART    the same from one token at a time
    grad/NAME                gradient of the loss
    after/RULE/NAME          a parameter after some steps of one of `RULES` on the same batch
    step/RULE/NAME           difference of those steps from their formula, on this side's gradients
    KIND/NAME                a probe of `backends/precision.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import machine, verdicts
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing
from mlxhog.config.optimizer import OptimizerChoice
from mlxhog.config.optimizers import SGD, AdamW, Momentum
from mlxhog.errors import ConfigError, EnvironmentLacks, did_you_mean
from mlxhog.models.ops import kernels

Array = NDArray[Any]
Results = Mapping[str, Array]

RULES = (SGD.name, Momentum.name, AdamW.name)
"""Optimizers of the package that are compared."""


@dataclass(frozen=True)
class ModelPlan:
    """All results of a language model.

    Attributes:
        cfg: the architecture, a config of a family.
        steps: updates with each optimizer; 0 for none.
        plugins: optimizers of plugins, compared beside `RULES`.
    """

    cfg: Any
    steps: int = 0
    plugins: tuple[OptimizerChoice, ...] = ()


@dataclass(frozen=True)
class ParitySubject:
    """A computation.

    Attributes:
        title: its name in the output.
        plan: its settings.
        inputs: parameters and other float32 inputs, by name; `--perturb` changes one of them.
        fixed: the rest: `tokens` (B, S) and `targets` (B, S) int32, -100 if not scored.
        notes: for the user: which results are not compared, and the origin of the values.
    """

    title: str
    plan: ModelPlan
    inputs: dict[str, Array]
    fixed: dict[str, Array]
    notes: tuple[str, ...] = ()


def perturbed(inputs: Mapping[str, Array], name: str, seed: int) -> Array:
    """Return the input `name` plus noise of a tenth of its size.

    A factor in place of noise could vanish in a norm.

    Raises:
        ConfigError: there is no such input.
    """
    if name not in inputs:
        raise ConfigError(f"--perturb: no parameter {name!r}{did_you_mean(name, inputs)}")
    value = inputs[name]
    size = max(0.1 * float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))), 0.01)
    noise = np.random.default_rng(seed).normal(0, size, value.shape)
    return (value + noise).astype(value.dtype)


def next_labels(labels: Array) -> Array:
    """Return the target of each position, (B, S) int32: the next label, and -100 at the end."""
    end = np.full_like(labels[:, :1], -100)
    return np.concatenate([labels[:, 1:], end], axis=1).astype(np.int32)


def parameter_after(name: str) -> str | None:
    """Return the parameter NAME of a result after/RULE/NAME; None for other results."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[2] if kind == "after" else None


def first(where: Array) -> tuple[int, ...]:
    """Return the index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))


NUMPY = "numpy"
EVERYONE = (NUMPY, "torch:cpu", "mlx:cpu", "torch:mps", "mlx:gpu")


@dataclass(frozen=True)
class ParitySide:
    """Computes a subject.

    Attributes:
        name: as above.
        backend: one of `EVERYONE`; sides of one backend share a process.
        kernels: form of the operators; "" if there is one form only.
    """

    name: str
    backend: str
    kernels: str = ""

    @property
    def float64(self) -> bool:
        """Whether it computes in float64."""
        return self.backend == NUMPY


def choose(backends: str, forms: str) -> tuple[list[ParitySide], list[str]]:
    """Return the sides, the reference first, and notes on those that are left out.

    Args:
        backends: "auto" for all that are present, or names of `EVERYONE`, by commas.
        forms: "all" of every backend, or one of `kernels.CHOICES`.

    Raises:
        ConfigError: an unknown name, or kernels that a backend cannot run.
        EnvironmentLacks: a backend that `backends` names is missing.
    """
    here = machine.here()
    named = [] if backends == "auto" else [name.strip() for name in backends.split(",")]
    for name in named:
        if name not in EVERYONE:
            raise ConfigError(
                f"--backends: no backend {name!r}; wanted auto, or some of "
                f"{', '.join(EVERYONE)}{did_you_mean(name, EVERYONE)}"
            )
    sides: list[ParitySide] = []
    notes = []
    for name in EVERYONE:
        if named and name not in named:
            continue
        lack = missing(name, here) if name in BACKENDS else None
        if lack is None:
            sides += _of_backend(name, forms)
        elif named:
            raise EnvironmentLacks(lack)
        elif name not in GPU_BACKENDS or here.apple_gpu:
            notes.append(f"left out: {lack}")
    return sides, notes


def _of_backend(name: str, forms: str) -> Sequence[ParitySide]:
    if name == NUMPY:
        return [ParitySide(name, name)]
    framework, device = name.split(":")
    resolve = partial(
        kernels.resolve,
        framework,
        device=device,
        metal_verified=verdicts.load().model_kernels(name).ok,
    )
    usual = resolve("auto")
    if forms != "all":
        form = resolve(forms)
        return [ParitySide(name if form == usual else f"{name}+{form}", name, form)]
    others = ["reference"] if device == "cpu" else ["reference", "metal"]
    return [
        ParitySide(name, name, usual),
        *(ParitySide(f"{name}+{form}", name, form) for form in others if form != usual),
    ]
