"""The vocabulary of a run's model: its own, or the size that the text's tokenizer needs."""

from __future__ import annotations

from pathlib import Path

from mlxhog.base import plain_yaml
from mlxhog.base.quantities import format_count
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import ConfigError
from mlxhog.models import families, registry
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.training.resume import Resumption


def is_set(config: TrainConfig) -> bool:
    """Whether `set` gives the size of the vocabulary."""
    return "vocab_size" in plain_yaml.assignments(config.set)


def is_kept(config: TrainConfig) -> bool:
    """Whether the model's vocabulary is its own: of a checkpoint, or given by `set`."""
    return registry.is_stored(config.model) or is_set(config)


def fitted(
    config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, resumption: Resumption | None
) -> tuple[ModelConfig, list[str]]:
    """The model over the tokenizer's ids, and notes for the user.

    A resumed run has its checkpoint's vocabulary; that of a config.json is kept.

    Raises:
        ConfigError: a vocabulary that is kept is smaller than the tokenizer's.
    """
    own, rows, spec = model.vocab_size, tokenizer.vocab_size, config.tokenizer
    if resumption is not None:
        rows = families.read(resumption.checkpoint.config).vocab_size
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows), []
    notes = []
    size = spec.removeprefix("bpe:")
    if size != spec and tokenizer.n_ids < int(size):
        notes.append(
            f"tokenizer {spec} learnt {tokenizer.n_ids:,} ids: this text has no more pairs to merge"
        )
    if is_kept(config):
        check(config, model, tokenizer)
        if own > rows and registry.is_stored(config.model):
            notes.append(
                f"model {config.model} keeps its vocabulary of {own:,}; tokenizer {spec} needs "
                f"{rows:,} of it (--set vocab_size={rows})"
            )
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=own), notes
    fitted = families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows)
    if own != rows:
        notes.append(
            f"vocabulary {rows:,}, that of tokenizer {spec}, in place of {own:,} of model "
            f"{Path(config.model).name}: {format_count(param_count(fitted))} parameters, not "
            f"{format_count(param_count(model))}"
        )
    return fitted, notes


def check(config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Refuse a vocabulary with fewer rows than the tokenizer has ids.

    Raises:
        ConfigError: it has fewer.
    """
    if tokenizer.n_ids > model.vocab_size:
        raise ConfigError(
            f"model {config.model} has vocab_size {model.vocab_size}, tokenizer {config.tokenizer} "
            f"{tokenizer.n_ids} ids, one of which is BOS, the start of a document; set vocab_size "
            f"to at least {tokenizer.n_ids} (--set vocab_size={tokenizer.vocab_size}), or choose "
            "another model or tokenizer"
        )
