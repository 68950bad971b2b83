"""The first weights of a run that are not drawn: another checkpoint's, or bigram statistics.

`InitialWeights` are those of the checkpoint that `init_from` names, under our names, whichever
program wrote them; the optimizer restarts, and the text may be another. The model's equations and
shapes must be the checkpoint's. With `resize_vocab` its vocabulary, the rows of embedding and head,
may be another: a row is kept if both tokenizers have a token of the same bytes; other rows get
initial values.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.base import mapped, plain_yaml
from mlxhog.checkpoint import compatible, manifest
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.display.views import Tell
from mlxhog.errors import CheckpointError, ConfigError, MlxhogError
from mlxhog.models import bigrams, families, ngrams, registry
from mlxhog.models.families import ModelConfig

MIN_BIGRAM_VOCAB = 512
"""Smallest vocabulary whose embedding and head are initialized from bigrams."""

OF_TRAINING = {"dropout", "reset_at_document_boundaries", "context_length", "vocab_size"}
"""Fields in which a model may differ from the checkpoint of its initial weights."""

MAX_DIFFERENCES = 6


def keeps_vocabulary(config: TrainConfig) -> bool:
    """Whether the model's vocabulary is its own: of a checkpoint, or given by `set`."""
    sets_it = "vocab_size" in plain_yaml.assignments(config.set)
    return sets_it or registry.is_stored(config.model)


def tied(name: str, config: TrainConfig) -> ConfigError:
    """Return the error for an option that needs an untied head."""
    return ConfigError(
        f"{name} needs a head of its own, and model {config.model} has its head tied to the "
        "embedding; untie it in the model (tie_word_embeddings or tie_weights: false), or leave "
        f"{name} out"
    )


@dataclass(frozen=True)
class BigramWeights:
    """The text whose bigram statistics initialize embedding and output head."""

    text: TokenFile

    @classmethod
    def of(
        cls, config: TrainConfig, model: ModelConfig, text: TokenFile, note: Tell
    ) -> Self | None:
        """Return those of a new run's text; None if the weights are random."""
        is_tied, how = model.tie_word_embeddings, config.embedding_init
        if how == "bigrams" and is_tied:
            raise tied("embedding_init", config)
        if how == "random" or (how == "auto" and (is_tied or model.vocab_size < MIN_BIGRAM_VOCAB)):
            return None
        note(
            "embedding and output head initialized from bigram statistics (--embedding-init "
            "random to disable)"
        )
        return cls(text)

    def fill(self, arena: Arena, model: ModelConfig) -> None:
        """Overwrite both in an arena of initial values; the embedding keeps its norm."""
        embedding, head = arena.param(families.embedding(model)), arena.param(families.head(model))
        rows, heads = bigrams.embedding_and_head(self.text.tokens, *embedding.shape)
        embedding[...] = rows * (np.linalg.norm(embedding) / np.linalg.norm(rows))
        head[...] = heads


@dataclass(frozen=True)
class InitialWeights:
    """An open checkpoint, and the mapping of its vocabulary to the model's.

    `rows` has for each row of the run's vocabulary the checkpoint's row or -1, (V,); it is None if
    both vocabularies are the same.
    """

    opened: Opened
    rows: NDArray[np.int64] | None = None

    def fitted(
        self, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, *, own: bool
    ) -> tuple[Self, ModelConfig]:
        """Return this with the rows of a run's model and tokenizer, and the model with as many.

        The vocabulary of the checkpoint's `own` model follows the text.
        """
        if differences := compatible.differences(self.opened.config, model, OF_TRAINING):
            raise CheckpointError(
                f"{self.opened.title} does not fit model {config.model}: "
                f"{', '.join(differences[:MAX_DIFFERENCES])}; leave --model out to train the "
                "checkpoint's own model, or --init-from to begin with new weights"
            )
        before, there = None, self.opened.config.vocab_size
        with suppress(MlxhogError):  # it may have no readable one
            before = self.opened.tokenizer()
        same = before is None or (before.sha256, before.bos) == (tokenizer.sha256, tokenizer.bos)
        if not same and not config.resize_vocab:
            assert before is not None
            raise CheckpointError(
                f"{self.opened.title} was trained with tokenizer {before.name} "
                f"{before.sha256[:12]} of {before.n_ids:,} ids, --tokenizer {config.tokenizer} is "
                f"{tokenizer.name} {tokenizer.sha256[:12]} of {tokenizer.n_ids:,}; leave "
                "--tokenizer out to use the checkpoint's, or add --resize-vocab, which keeps the "
                "rows of tokens with the same text"
            )
        if own:
            fits = same and tokenizer.n_ids <= there
            model = replace(model, vocab_size=there if fits else tokenizer.vocab_size)
        if model.vocab_size != there and not config.resize_vocab:
            raise CheckpointError(
                f"{self.opened.title} has a vocabulary of {there:,} rows, the model here of "
                f"{model.vocab_size:,}; add --resize-vocab, which keeps the rows of tokens with "
                "the same text, or leave --model out to train the checkpoint's own"
            )
        if same and model.vocab_size == there:
            return replace(self, rows=None), model
        rows = np.arange(model.vocab_size)
        rows[rows >= there] = -1
        if before is not None and not same:
            rows = _by_text(before, tokenizer, there, model.vocab_size)
        return replace(self, rows=rows), model

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on the weights."""
        where = f"begins with the weights of {self.opened.title}"
        if (self.opened.path / manifest.NAME).is_file():
            where = f"{where} (step {manifest.read(self.opened.path)['step']:,})"
        if self.rows is None:
            return (where,)
        rows, kept = len(self.rows), int((self.rows >= 0).sum())
        tables = ", like the n-gram embedding tables" * (ngrams.of(self.opened.config) is not None)
        return (
            where,
            f"vocabulary resized from {self.opened.config.vocab_size:,} to {rows:,} rows: {kept:,} "
            f"are kept, of tokens with the same text, and {rows - kept:,} begin as at "
            f"initialization{tables}",
        )

    def fill(self, arena: Arena, model: ModelConfig) -> None:
        """Write the weights into an arena that holds initial values."""
        by_rows = {families.embedding(model), families.head(model), families.head_bias(model)}
        damaged = []
        for name, tensor in self.opened.tensors.items():
            if name not in arena.layout.slots:
                continue  # frozen
            if self.rows is not None and name in arena.layout.tables:
                continue  # of n-grams of other ids
            slot = arena.param(name)
            by_row = self.rows is not None and name in by_rows
            whole = np.empty(tensor.shape, np.float32) if by_row else slot
            if not mapped.copy(tensor, whole):
                damaged.append(name)
            if self.rows is not None and by_row:
                known = self.rows >= 0
                slot[known] = whole[self.rows[known]]
        refuse_not_finite(damaged, self.opened.path)


def _by_text(there: Tokenizer, here: Tokenizer, rows: int, own_rows: int) -> NDArray[np.int64]:
    """For each row of one vocabulary, the row of the other with the same token bytes, or -1."""
    known: dict[bytes, int] = {}
    for i in range(min(there.n_ids, rows)):
        known.setdefault(there.decode([i]), i)
    known.pop(b"", None)  # of special tokens
    source = np.full(own_rows, -1, np.int64)
    for i in range(min(here.n_ids, own_rows)):
        source[i] = known.get(here.decode([i]), -1)
    if there.bos < rows and here.bos < own_rows:
        source[here.bos] = there.bos
    return source
