"""The subject of a comparison: an architecture or a checkpoint; and the sides that compute it.

A subject is known before its arrays, which are drawn or read only when they are needed. So a model
that is too large for this machine is refused before. Its sides are

    numpy                   float64, the reference of the others
    torch:cpu, mlx:cpu ..   a backend with the kernels that training would use there
    torch:cpu+eager         the same backend with another implementation of its kernels

Names of results, the same for every side:

    hidden/0, hidden/1 ..    the residual stream (B, S, d) after the embedding and after each block
    hidden/out_norm          and after the last norm
    logits, loss             (B, S, V) after the cap; mean nats of the targets other than -100
    state/L/PART             state of block L after the sequence: conv, then C n m, or h c n m of an
                             sLSTM; other layers have the names of `Shapes`, and numbers
    stepwise/logits, stepwise/state/L/PART    the same from one token at a time
    grad/NAME                gradient of the loss
    after/RULE/NAME          a parameter after some steps of one of `RULES` on the same batch
    step/RULE/NAME           difference of those steps from their formula, on this side's gradients
    KIND/NAME                a probe of `backends/probes.py`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import capabilities, machine
from mlxhog.base.quantities import format_bytes
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.data.batch import IGNORED
from mlxhog.errors import ConfigError, EnvironmentLacks, RunError, did_you_mean
from mlxhog.experiments.target import not_found
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.layers.layer import Layer
from mlxhog.models.ops import kernels
from mlxhog.models.registry import load_architecture
from mlxhog.optim import SGD, AdamW, Momentum, OptimizerComponent

Array = NDArray[Any]
Results = Mapping[str, Array]

RULES = (SGD.name, Momentum.name, AdamW.name)  # optimizers of the package that are compared

NOISE = 0.1
EMBEDDING_NOISE = 0.5  # the norm behind a small embedding would enlarge its gradient
OPEN_GATE = -1.0
LEFT_OUT = 0.1
PERTURBED = (
    "parameters are initial values with noise on top and input gates opened, so that no gradient "
    "vanishes"
)
OWN = "parameters are the checkpoint's own"
WHOLE = "an auto-encoder reads whole sequences: no results token by token"
MEMORY_SHARE = 0.8  # of the machine's memory
COPIES, COPIES_OF_STEPS = 4, 16
"""Copies of the parameters in one process: values, leaves, gradients and results; then optimizer
state, formulas in float64, and three results."""


@dataclass(frozen=True, kw_only=True)
class ParitySubject:
    """A model to compute, with its arrays or before they are made."""

    title: str  # its name in the output
    cfg: ModelConfig  # the architecture
    seed: int = 0  # of tokens and noise
    shape: tuple[int, int] = (2, 67)  # of its tokens, (B, S)
    steps: int = 3  # updates with each optimizer; 0 for none
    dtype: str = "float32"  # of loss and gradients: "bfloat16" is mixed precision
    plugins: tuple[OptimizerComponent, ...] = ()  # optimizers of plugins, compared beside `RULES`
    draw: Callable[[], dict[str, Array]] | None = None  # draws or reads the parameters
    inputs: Results = field(default_factory=dict)  # parameters by name; `--perturb` changes one
    fixed: Results = field(default_factory=dict)  # `tokens`, `targets` (B, S), or IGNORED
    notes: tuple[str, ...] = ()  # for the user: results not compared, origin of the values

    def with_arrays(self) -> "ParitySubject":
        """Return the subject with its arrays and random tokens."""
        (B, S), cfg = self.shape, self.cfg
        ids = np.random.default_rng(self.seed).integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
        if (bos := families.reset_token(cfg)) is not None:  # a document begins in the middle
            ids[:, 0] = ids[:, S // 2] = bos
        fixed: dict[str, Array] = {"tokens": ids}
        notes = [*self.notes, f"tokens are random (B, S) = {ids.shape}, a tenth of them not scored"]
        if not families.is_language_model(cfg):
            notes.append(WHOLE)
        if self.dtype != "float32":
            notes.append("loss and gradients are in mixed precision, all else in float32")
        if S > 1:
            targets = np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], IGNORED)], axis=1)
            rng = np.random.default_rng([self.seed, 1])
            targets[:, 1:][rng.random((B, S - 1)) < LEFT_OUT] = IGNORED
            fixed["targets"] = targets
        else:
            notes.append("a single token has no target: no loss, no gradient, no steps")
        inputs = dict(self.inputs) if self.draw is None else self.draw()
        return replace(self, draw=None, inputs=inputs, fixed=fixed, notes=tuple(notes))


def open_subject(
    kind: str, where: str, runs: Path, changes: str | None = None, **sizes: Any
) -> ParitySubject:
    """Return the subject of a command, a "config" or a "checkpoint", without its arrays.

    `changes` are as `--set` takes them; the sizes are `seed`, `shape`, `steps` and
    `dtype`.

    Raises:
        ConfigError: the architecture is unknown, or its fields contradict each other; or a
            checkpoint should have changes.
        CheckpointError, RunError: the checkpoint is missing or damaged.
    """
    if changes is not None and kind != "config":
        raise ConfigError(
            f"--set {changes} changes an architecture, and the sizes of the {kind} {where} are "
            "fixed; leave --set out, or name an architecture or a line of layers"
        )
    if kind == "checkpoint":
        try:
            path = checkpoint.locate(where, runs)
        except RunError as error:
            raise not_found(where, runs, error) from error
        opened = formats.open(path)

        def stored() -> dict[str, Array]:
            params: dict[str, Array] = {
                name: np.empty(value.shape, np.float32) for name, value in opened.tensors.items()
            }
            opened.copy_into(params)
            return params

        return ParitySubject(
            title=opened.title, cfg=opened.config, draw=stored, notes=(OWN,), **sizes
        )
    cfg = load_architecture(where, changes)
    title = where if changes is None else f"{where} with --set {changes}"
    return perturbed_subject(title, cfg, **sizes)


def perturbed_subject(title: str, cfg: ModelConfig, **sizes: Any) -> ParitySubject:
    """Return an architecture whose parameters `perturbed_init` will draw."""
    subject = ParitySubject(title=title, cfg=cfg, notes=(PERTURBED,), **sizes)
    return replace(subject, draw=partial(perturbed_init, cfg, subject.seed))


def perturbed_init(cfg: ModelConfig, seed: int) -> dict[str, Array]:
    """Return initial values with noise of std 0.1, less for parameters with many inputs.

    Initial values alone would hide errors: gates are closed and matrices zero, so that whole
    gradients vanish.
    """
    values, embedding = families.init_params(cfg, seed), families.embedding(cfg)
    for number, (name, spec) in enumerate(families.param_spec(cfg).items()):
        rng = np.random.default_rng([seed, number])
        inputs = spec.shape[-1] if len(spec.shape) > 1 else 1
        std = EMBEDDING_NOISE if name == embedding else min(NOISE, inputs**-0.5)
        noise = rng.standard_normal(spec.shape, np.float32)
        value = values[name]
        if spec.init.startswith("constant:"):  # an input gate of -10 would stay closed
            value = np.maximum(value, np.float32(OPEN_GATE))
        values[name] = value + np.float32(std) * noise
    return values


LETTERS = {"mlstm": "Cnm", "slstm": "hcnm"}
"""Names of the arrays of a cell, by its layer; those of other layers have numbers."""


def state_names(layer: Layer, d: int) -> list[str]:
    """Return the names of the parts of a layer's state, at width d."""
    names = list[str]()
    for name, own in layer.state_shapes(d, 0).items():
        letters = LETTERS.get(layer.name.partition("-")[0], "") if name == "cell" else ""
        one = [name] if len(own) == 1 else [f"{name}.{k}" for k in range(len(own))]
        names += letters or one
    return names


def perturbed(inputs: Mapping[str, Array], name: str, seed: int) -> Array:
    """Return the input `name` plus noise of a tenth of its root mean square.

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


def check_memory(subject: ParitySubject, sides: "Sequence[ParitySide]") -> None:
    """Refuse a model of which this machine's memory cannot hold a copy per backend.

    Raises:
        EnvironmentLacks: says how much is needed, and which options need less.
    """
    copies = COPIES + (COPIES_OF_STEPS if subject.steps else 0)
    (B, S), cfg = subject.shape, subject.cfg
    params, names = families.param_count(cfg), {side.backend for side in sides}
    width: int = 16 * cfg.hidden_size * cfg.num_hidden_layers + 4 * cfg.vocab_size
    of_side = copies * params + B * S * width
    needed = 4 * params + sum(8 if name == NUMPY else 4 for name in names) * of_side
    most = int(MEMORY_SHARE * machine.here().memory_bytes)
    if needed > most:
        raise EnvironmentLacks(
            f"parity of {subject.title} needs about {format_bytes(needed)} in {len(names)} "
            f"processes, but {MEMORY_SHARE:.0%} of this machine's memory are {format_bytes(most)}; "
            "use fewer --backends, --steps 0, or a smaller --batch-size or --seq-len"
        )


def parameter_after(name: str) -> str | None:
    """Return the parameter NAME of a result after/RULE/NAME; None for other results."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[2] if kind == "after" else None


NUMPY = "numpy"
EVERYONE = (NUMPY, "torch:cpu", "mlx:cpu", "torch:mps", "mlx:gpu")


@dataclass(frozen=True)
class ParitySide:
    """A backend, with one implementation of its kernels, that computes a subject."""

    name: str  # as above
    backend: str  # one of `EVERYONE`; sides of one backend share a process
    kernels: str = ""  # implementation of the operators; "" if there is only one

    @property
    def float64(self) -> bool:
        """Whether it computes in float64."""
        return self.backend == NUMPY


def choose(backends: str, implementations: str) -> tuple[list[ParitySide], list[str]]:
    """Return the sides, the reference first, and notes on those that are left out.

    `backends` is "auto" for all that are present, or names of `EVERYONE` by commas;
    `implementations` is "all" of every backend, or one of `kernels.CHOICES`.

    Raises:
        ConfigError: an unknown name, or kernels that a backend cannot run.
        EnvironmentLacks: a backend that `backends` names is missing.
    """
    here, sides, notes = machine.here(), list[ParitySide](), list[str]()
    named = [] if backends == "auto" else [name.strip() for name in backends.split(",")]
    for name in named:
        if name not in EVERYONE:
            raise ConfigError(
                f"--backends: no backend {name!r}; wanted auto, or some of "
                f"{', '.join(EVERYONE)}{did_you_mean(name, EVERYONE)}"
            )
    for name in EVERYONE:
        if named and name not in named:
            continue
        lack = missing(name, here) if name in BACKENDS else None
        if lack is None:
            sides += _of_backend(name, implementations)
        elif named:
            raise EnvironmentLacks(lack)
        elif name not in GPU_BACKENDS or here.apple_gpu:
            notes.append(f"left out: {lack}")
    return sides, notes


def _of_backend(name: str, implementations: str) -> Sequence[ParitySide]:
    if name == NUMPY:
        return [ParitySide(name, name)]
    framework, device = name.split(":")
    verified = capabilities.load().model_kernels(name).ok
    resolve = partial(kernels.resolve, framework, device=device, metal_verified=verified)
    usual = resolve("auto")
    every = (
        ["auto", "eager", *["metal"] * (device != "cpu")]
        if implementations == "all"
        else [implementations]
    )
    return [
        ParitySide(name if one == usual else f"{name}+{one}", name, one)
        for one in dict.fromkeys(map(resolve, every))
    ]
