"""Initial weights of a new run from the checkpoint that `init_from` names.

They are read under our names, whichever program wrote them; the optimizer restarts, and the text
may be another. The model's equations and shapes must be the checkpoint's. With `resize_vocab` its
vocabulary, the rows of embedding and head, may be another: a row is kept if both tokenizers have a
token of the same bytes; other rows get initial values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import run_of
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, MlxhogError
from mlxhog.files import mapped
from mlxhog.models import families, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large.config import SPELLINGS
from mlxhog.training.resume import score_of

OF_TRAINING = ("dropout", "reset_at_document_boundaries", "context_length", "vocab_size")
"""Fields in which a model may differ from the checkpoint of its initial weights."""

MOST_DIFFERENCES = 6


def located(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the path of the checkpoint that `init_from` names now.

    Raises:
        RunError, CheckpointError: that checkpoint does not exist.
    """
    if config.init_from is None:
        return config
    path = checkpoint.locate(config.init_from, Path(config.out))
    return replace(config, init_from=str(path))


def with_model_and_tokenizer(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model and the tokenizer that `auto` leaves open.

    They are those of the checkpoint that a resumed run continues, or that a new one begins with.

    Raises:
        RunError, CheckpointError: that checkpoint does not exist.
        DataError: it has no tokenizer.
    """
    if config.resume is not None:
        _, path = checkpoint.resumable(config.resume, Path(config.out))
    elif config.init_from is not None:
        path = Path(config.init_from)
    else:
        return config
    if config.model == "auto":
        config = replace(config, model=str(path))
    if config.tokenizer == "auto":
        folder = path if path.is_dir() else path.parent
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} holds no tokenizer.json, so nothing says what its ids mean; name the "
                "tokenizer of its training text with --tokenizer"
            )
        config = replace(config, tokenizer=str(folder))
    return config


@dataclass(frozen=True)
class Vocabulary:
    """The mapping from rows of a checkpoint's vocabulary to rows of the run's.

    Attributes:
        source: for each row of the run, the checkpoint's row or -1, (V,) int64.
        rows: number of rows in the checkpoint.
        unchanged: whether both vocabularies are the same.
    """

    source: NDArray[np.int64]
    rows: int
    unchanged: bool

    def __str__(self) -> str:
        """The number of kept and of new rows, as a message."""
        n_kept = int((self.source >= 0).sum())
        return (
            f"vocabulary resized from {self.rows:,} to {len(self.source):,} rows: {n_kept:,} are "
            f"kept, of tokens with the same text, and {len(self.source) - n_kept:,} begin as at "
            "initialisation"
        )


@dataclass(frozen=True)
class InitialWeights:
    """An open checkpoint, and the mapping of its vocabulary to the model's.

    Attributes:
        opened: the checkpoint.
        vocabulary: the mapping, set by `fitted`.
    """

    opened: Opened
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Self | None:
        """Open the checkpoint that `init_from` names; None if the run begins with new weights.

        Raises:
            CheckpointError, ConfigError: it is missing, damaged, or of an unknown family.
        """
        return None if config.init_from is None else cls(formats.open(config.init_from))

    def fitted(
        self, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, *, own: bool
    ) -> tuple[Self, ModelConfig]:
        """Compare the checkpoint with the model and the tokenizer of the run.

        Args:
            config: of the run.
            model: its model.
            tokenizer: of its text.
            own: whether the model is the checkpoint's, so that its vocabulary follows the text.

        Returns:
            This with the vocabulary, and the model with the matching number of rows.

        Raises:
            CheckpointError: another family, other shapes, or another vocabulary without
                `resize_vocab`.
        """
        self._check_model(config, model)
        before, there = self._tokenizer(), self.opened.config.vocab_size
        same = before is None or (before.sha256, before.bos) == (tokenizer.sha256, tokenizer.bos)
        if not same and not config.resize_vocab:
            assert before is not None
            raise CheckpointError(
                f"{self.opened.path} was trained with tokenizer {before.name} "
                f"{before.sha256[:12]} of {before.n_ids:,} ids, --tokenizer {config.tokenizer} is "
                f"{tokenizer.name} {tokenizer.sha256[:12]} of {tokenizer.n_ids:,}; leave "
                "--tokenizer out to use the checkpoint's, or add --resize-vocab, which keeps the "
                "rows of tokens with the same text"
            )
        if own:
            fits = same and tokenizer.n_ids <= there
            model = families.with_vocabulary(model, there if fits else tokenizer.vocab_size)
        if model.vocab_size != there and not config.resize_vocab:
            raise CheckpointError(
                f"{self.opened.path} has a vocabulary of {there:,} rows, the model here of "
                f"{model.vocab_size:,}; add --resize-vocab, which keeps the rows of tokens with "
                "the same text, or leave --model out to train the checkpoint's own"
            )
        if same:
            source = np.arange(model.vocab_size)
            source[source >= there] = -1
        else:
            assert before is not None
            source = _by_text(before, tokenizer, there, model.vocab_size)
        unchanged = same and model.vocab_size == there
        if not unchanged and ngrams.of(model) is not None:
            raise CheckpointError(
                f"{self.opened.path} has tables of n-grams of its own tokenizer's ids, so its "
                "vocabulary cannot be resized; leave --tokenizer and --resize-vocab out"
            )
        return replace(self, vocabulary=Vocabulary(source, there, unchanged)), model

    def _tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None if it has no readable one."""
        try:
            return self.opened.tokenizer()
        except MlxhogError:
            return None

    def _check_model(self, config: TrainConfig, model: ModelConfig) -> None:
        there = self.opened.config
        way_out = (
            "leave --model out to train the checkpoint's own model, or --init-from to begin with "
            "new weights"
        )
        if there.model_type != model.model_type:
            raise CheckpointError(
                f"{self.opened.path} is a model of the family {families.of(there).title} "
                f"({there.model_type}), {config.model} one of {families.of(model).title} "
                f"({model.model_type}); {way_out}"
            )
        differences = list(_differences(there.to_dict(), model.to_dict()))
        more = len(differences) - MOST_DIFFERENCES
        if differences:
            several = ", ".join(differences[:MOST_DIFFERENCES]) + (f" and {more} more" * (more > 0))
            raise CheckpointError(
                f"{self.opened.path} does not fit model {config.model}: {several}; {way_out}"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on the weights."""
        where = f"begins with the weights of {self.opened.path}"
        if (self.opened.path / manifest.NAME).is_file():
            record = manifest.read(self.opened.path)
            path = self.opened.path.resolve()
            score = score_of(run_of(path), path, record["state"])
            known = f", {score}, on its own text" if score else ""
            where = f"{where} (step {record['step']:,}{known})"
        resized = self.vocabulary is not None and not self.vocabulary.unchanged
        return (where, str(self.vocabulary)) if resized else (where,)

    def fill(self, arena: Arena, model: ModelConfig) -> None:
        """Write the weights into an arena that holds initial values.

        Raises:
            CheckpointError: some weights are not finite; the message names them.
        """
        assert self.vocabulary is not None
        by_rows = {families.embedding(model), families.head(model), families.head_bias(model)}
        damaged = []
        for name, tensor in self.opened.tensors.items():
            slot = arena.param(name)
            if self.vocabulary.unchanged or name not in by_rows:
                finite = mapped.copy(tensor, slot)
            else:
                whole = np.empty(tensor.shape, np.float32)
                finite = mapped.copy(tensor, whole)
                known = self.vocabulary.source >= 0
                slot[known] = whole[self.vocabulary.source[known]]
            if not finite:
                damaged.append(name)
        refuse_not_finite(damaged, self.opened.path)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterable[str]:
    """The fields in which two models differ but must not, as messages."""
    ignored = checkpoint.NOT_ARCHITECTURE | {*OF_TRAINING}
    if "hidden_size" in here:  # it has two names in transformers' files
        ignored |= SPELLINGS.keys()
    for field in sorted((there.keys() | here.keys()) - ignored):
        if there.get(field) != here.get(field):
            yield checkpoint.difference(field, there.get(field), here.get(field))


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
