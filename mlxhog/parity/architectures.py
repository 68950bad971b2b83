"""A model without recorded results: parameters that show every gradient, and random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.parity.cases import next_labels
from mlxhog.parity.subject import Array, ModelPlan, Subject

NOISE = 0.1
EMBEDDING_NOISE = 0.5  # the norm behind a small embedding would enlarge its gradient
OPEN_GATE = -1.0
LEFT_OUT = 0.1
PERTURBED = (
    "parameters are initial values with noise on top and input gates opened, so that no gradient "
    "vanishes"
)
OWN = "parameters are the checkpoint's own"
FORWARD = (
    "numpy computes the forward pass of this family and nothing else: gradients, states, steps and "
    "tokens one by one are compared between the backends, and with PyTorch's plain operators"
)
WHOLE = "an auto-encoder reads whole sequences: nothing is computed token by token"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What an architecture or a checkpoint is tried with.

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


def subject(
    title: str, cfg: ModelConfig, params: dict[str, Array], sizes: Sizes, note: str
) -> Subject:
    """Return a model with random tokens.

    Args:
        title: its name.
        cfg: the architecture.
        params: its parameters, float32.
        sizes: how many tokens and steps.
        note: what the parameters are.
    """
    ids = tokens(cfg, sizes.batch_size, sizes.seq_len, sizes.seed)
    fixed = {"tokens": ids}
    notes = [note, f"tokens are random (B, S) = {ids.shape}, a tenth of them not scored"]
    if families.of(cfg).reference == "forward":
        notes.append(FORWARD)
    if not families.is_language_model(cfg):
        notes.append(WHOLE)
    if ids.shape[1] > 1:
        targets = next_labels(ids)
        rng = np.random.default_rng([sizes.seed, 1])
        targets[:, 1:][rng.random(targets[:, 1:].shape) < LEFT_OUT] = -100
        fixed["targets"] = targets
    else:
        notes.append("one token has no next one: no loss, no gradient, no steps")
    return Subject(title, ModelPlan(cfg, steps=sizes.steps), params, fixed, notes=tuple(notes))


def perturbed_init(cfg: ModelConfig, seed: int) -> dict[str, Array]:
    """Return initial values with noise of std 0.1, less where a row sums over many inputs.

    Initial values alone would hide mistakes: gates are closed and matrices zero, so that whole
    gradients vanish.
    """
    values, embedding = families.init_params(cfg, seed), families.embedding(cfg)
    for number, (name, spec) in enumerate(families.param_spec(cfg).items()):
        rng = np.random.default_rng([seed, number])
        inputs = spec.shape[-1] if len(spec.shape) > 1 else 1
        std = EMBEDDING_NOISE if name == embedding else min(NOISE, inputs**-0.5)
        noise = rng.standard_normal(spec.shape, np.float32)
        value = values[name]
        if spec.init.startswith("constant:"):  # an input gate of -10 would let nothing in
            value = np.maximum(value, np.float32(OPEN_GATE))
        values[name] = value + np.float32(std) * noise
    return values


def tokens(cfg: ModelConfig, B: int, S: int, seed: int) -> Array:
    """Random tokens (B, S) int32; of a model that resets, with a document's start in the middle."""
    ids = np.random.default_rng(seed).integers(0, cfg.vocab_size, (B, S), dtype=np.int32)
    if (bos := families.reset_token(cfg)) is not None:
        ids[:, 0] = ids[:, S // 2] = bos
    return ids
