"""An architecture or a checkpoint as a subject: parameters, and tokens for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlxhog import formats
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.parity.cases import next_labels
from mlxhog.parity.subject import Array, ModelPlan, Subject

NOISE = 0.1
OPEN_GATE = -1.0
LEFT_OUT = 0.1


def of_config(
    title: str, cfg: ModelConfig, *, seed: int, batch_size: int, seq_len: int, steps: int
) -> Subject:
    """Return an architecture with perturbed initial values.

    Initial values alone would hide mistakes: gates are closed, and matrices zero, so that whole
    gradients vanish.

    Args:
        title: its name.
        cfg: the architecture.
        seed: of values and tokens.
        batch_size: sequences.
        seq_len: tokens in each.
        steps: updates with each optimizer.
    """
    return _subject(
        title,
        cfg,
        perturbed_init(cfg, seed),
        tokens(cfg, batch_size, seq_len, seed),
        seed,
        steps,
        "parameters are initial values with noise on top and input gates opened, so that no "
        "gradient vanishes",
    )


def of_checkpoint(where: Path, *, seed: int, batch_size: int, seq_len: int, steps: int) -> Subject:
    """Return a checkpoint's model with its own parameters, in float32; arguments as `of_config`.

    Raises:
        CheckpointError: it is missing, damaged, or not all of it is finite.
        ConfigError: its config cannot be read.
    """
    opened = formats.open(where)
    own = {name: np.empty(value.shape, np.float32) for name, value in opened.tensors.items()}
    opened.copy_into(own)
    ids = tokens(opened.config, batch_size, seq_len, seed)
    note = "parameters are the checkpoint's own"
    return _subject(str(where), opened.config, own, ids, seed, steps, note)


def _subject(
    title: str,
    cfg: ModelConfig,
    params: dict[str, Array],
    ids: Array,
    seed: int,
    steps: int,
    note: str,
) -> Subject:
    fixed = {"tokens": ids}
    notes = [note, f"tokens are random (B, S) = {ids.shape}, a tenth of them not scored"]
    if ids.shape[1] > 1:
        targets = next_labels(ids)
        rng = np.random.default_rng([seed, 1])
        targets[:, 1:][rng.random(targets[:, 1:].shape) < LEFT_OUT] = -100
        fixed["targets"] = targets
    else:
        notes.append("one token has no next one: no loss, no gradient, no steps")
    return Subject(title, ModelPlan(cfg, steps=steps), params, fixed, notes=tuple(notes))


def perturbed_init(cfg: ModelConfig, seed: int) -> dict[str, Array]:
    """Return initial values with noise of std 0.1, less where a row sums over many inputs."""
    values = families.init_params(cfg, seed)
    for number, (name, spec) in enumerate(families.param_spec(cfg).items()):
        rng = np.random.default_rng([seed, number])
        inputs = spec.shape[-1] if len(spec.shape) > 1 else 1
        noise = rng.standard_normal(spec.shape, np.float32)
        value = values[name]
        if spec.init.startswith("constant:"):  # an input gate of -10 would let nothing in
            value = np.maximum(value, np.float32(OPEN_GATE))
        values[name] = value + np.float32(min(NOISE, inputs**-0.5)) * noise
    return values


def tokens(cfg: ModelConfig, B: int, S: int, seed: int) -> Array:
    """Random tokens (B, S) int32; of a model that resets, with a document's start in the middle."""
    ids = np.random.default_rng(seed).integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
    if (bos := families.reset_token(cfg)) is not None:
        ids[:, 0] = ids[:, S // 2] = bos
    return ids
