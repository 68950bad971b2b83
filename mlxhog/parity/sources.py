"""Subjects of a comparison: an architecture or a checkpoint.

The plan of a subject is known first; its parameters are drawn or read only when they are needed. So
a model that is too large for this machine is refused before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlxhog.base import machine
from mlxhog.base.quantities import format_bytes
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import load_architecture, load_candidate, with_changes
from mlxhog.parity.subject import (
    Array,
    ModelPlan,
    ParitySide,
    ParitySubject,
    next_labels,
)

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
class TrialSettings:
    """Inputs and steps for an architecture or a checkpoint.

    Attributes:
        seed: of tokens and noise.
        batch_size: sequences.
        seq_len: tokens in each.
        steps: updates with each optimizer.
    """

    seed: int = 0
    batch_size: int = 2
    seq_len: int = 67
    steps: int = 3


@dataclass(frozen=True)
class SubjectSource:
    """A subject before its arrays are made.

    Attributes:
        title: its name in the output.
        plan: of the computation.
        shape: of its tokens, (B, S).
        make: draws or reads the arrays, and checks them.
    """

    title: str
    plan: ModelPlan
    shape: tuple[int, ...]
    make: Callable[[], ParitySubject]


def open_source(
    kind: str, where: str, sizes: TrialSettings, runs: Path, changes: str | None = None
) -> SubjectSource:
    """Open the subject of a command.

    Args:
        kind: "config" or "checkpoint".
        where: a name or a path.
        sizes: tokens and steps.
        runs: the folder of runs.
        changes: other values of some fields of an architecture, as `--set` takes them.

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
        return _checkpoint(checkpoint.locate(where, runs), sizes)
    is_line = " " in where and not Path(where).exists()
    cfg = load_candidate(where) if is_line else load_architecture(where)
    cfg = with_changes(cfg, where, changes)
    title = where if changes is None else f"{where} with --set {changes}"

    def make() -> ParitySubject:
        params = perturbed_init(cfg, sizes.seed)
        return model_subject(title, cfg, params, sizes, PERTURBED)

    plan = ModelPlan(cfg, sizes.steps)
    return SubjectSource(title, plan, (sizes.batch_size, sizes.seq_len), make)


def _checkpoint(path: Path, sizes: TrialSettings) -> SubjectSource:
    opened = formats.open(path)

    def make() -> ParitySubject:
        params: dict[str, Array] = {
            name: np.empty(value.shape, np.float32) for name, value in opened.tensors.items()
        }
        opened.copy_into(params)
        title, note = str(path), OWN
        return model_subject(title, opened.config, params, sizes, note)

    shape = (sizes.batch_size, sizes.seq_len)
    plan = ModelPlan(opened.config, sizes.steps)
    return SubjectSource(str(path), plan, shape, make)


def model_subject(
    title: str, cfg: ModelConfig, params: dict[str, Array], sizes: TrialSettings, note: str
) -> ParitySubject:
    """Return a model with random tokens.

    Args:
        title: its name.
        cfg: the architecture.
        params: its parameters, float32.
        sizes: tokens and steps.
        note: origin of the parameters.
    """
    ids = tokens(cfg, sizes.batch_size, sizes.seq_len, sizes.seed)
    fixed = {"tokens": ids}
    notes = [note, f"tokens are random (B, S) = {ids.shape}, a tenth of them not scored"]
    if not families.is_language_model(cfg):
        notes.append(WHOLE)
    plan = ModelPlan(cfg, steps=sizes.steps)
    if ids.shape[1] > 1:
        targets = next_labels(ids)
        rng = np.random.default_rng([sizes.seed, 1])
        targets[:, 1:][rng.random(targets[:, 1:].shape) < LEFT_OUT] = -100
        fixed["targets"] = targets
    else:
        notes.append("a single token has no target: no loss, no gradient, no steps")
    return ParitySubject(title, plan, params, fixed, notes=tuple(notes))


def perturbed_init(cfg: ModelConfig, seed: int) -> dict[str, Array]:
    """Return initial values with noise of std 0.1, or less if a row sums over many inputs.

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
    for number, (name, spec) in enumerate(families.table_spec(cfg).items()):
        rng = np.random.default_rng([seed, number, 1])
        values[name] = np.float32(NOISE) * rng.standard_normal(spec.shape, np.float32)
    return values


def tokens(cfg: ModelConfig, B: int, S: int, seed: int) -> Array:
    """Draw tokens (B, S) int32; for a model that resets, a document begins in the middle."""
    ids = np.random.default_rng(seed).integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
    if (bos := families.reset_token(cfg)) is not None:
        ids[:, 0] = ids[:, S // 2] = bos
    return ids


def check_memory(source: SubjectSource, sides: Sequence[ParitySide]) -> None:
    """Refuse a model that does not fit into this machine's memory once for every backend.

    Raises:
        EnvironmentLacks: says how much is needed, and which options need less.
    """
    needed = bytes_needed(source.plan, source.shape, sides)
    present = machine.here().memory_bytes
    if needed > MEMORY_SHARE * present:
        count = len({side.backend for side in sides})
        raise EnvironmentLacks(
            f"parity of {source.title} needs about {format_bytes(needed)} in {count} "
            f"processes, but {MEMORY_SHARE:.0%} of this machine's memory are "
            f"{format_bytes(int(MEMORY_SHARE * present))}; use "
            "fewer --backends, --steps 0, or a smaller --batch-size or --seq-len"
        )


def bytes_needed(plan: ModelPlan, shape: tuple[int, ...], sides: Sequence[ParitySide]) -> int:
    """Estimate the memory of all processes together for tokens of `shape` (B, S)."""
    copies = COPIES + (COPIES_OF_STEPS if plan.steps else 0)
    B, S = shape
    params = families.param_count(plan.cfg)
    width: int = 16 * plan.cfg.hidden_size * plan.cfg.num_hidden_layers + 4 * plan.cfg.vocab_size
    sizes = [8 if name == "numpy" else 4 for name in {side.backend for side in sides}]
    of_this_process = 4 * params
    return of_this_process + sum(sizes) * (copies * params + B * S * width)
