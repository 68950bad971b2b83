"""Weights that a new run begins with: those of the checkpoint that `init_from` names.

They are read under our names, whoever wrote them; the optimizer begins anew, and the text is
another. The model's equations and shapes have to be the checkpoint's. Its vocabulary, the rows of
embedding and head, may be another where `resize_vocab` says so: a row is kept where both tokenizers
have a token of the same bytes, and begins as at initialisation elsewhere.
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
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, MlxhogError
from mlxhog.files import mapped
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large.config import SPELLINGS

OF_TRAINING = ("dropout", "reset_at_document_boundaries", "context_length", "vocab_size")
"""Fields in which a model may differ from the checkpoint whose weights it begins with."""

MOST_DIFFERENCES = 6


def located(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the path of the checkpoint that `init_from` names now.

    Raises:
        RunError, CheckpointError: there is none.
    """
    if config.init_from is None:
        return config
    path = checkpoint.locate(config.init_from, Path(config.out))
    return replace(config, init_from=str(path))


def with_model_and_tokenizer(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the model and the tokenizer that `auto` leaves open.

    They are those of the checkpoint that a resumed run continues, or that a new one begins with.

    Raises:
        RunError, CheckpointError: there is no such checkpoint.
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
    """Which rows of a vocabulary are those of another.

    Attributes:
        source: of every row, the row that it is there, or -1, (V,) int64.
        rows: of the other.
        unchanged: whether both are the same.
    """

    source: NDArray[np.int64]
    rows: int
    unchanged: bool

    def __str__(self) -> str:
        """Say what becomes of the rows."""
        n_kept = int((self.source >= 0).sum())
        return (
            f"vocabulary resized from {self.rows:,} to {len(self.source):,} rows: {n_kept:,} are "
            f"kept, of tokens with the same text, and {len(self.source) - n_kept:,} begin as at "
            "initialisation"
        )


@dataclass(frozen=True)
class InitialWeights:
    """A checkpoint that is open, and how its vocabulary becomes the model's.

    Attributes:
        opened: the checkpoint.
        vocabulary: the model's, which `fitted` finds out.
    """

    opened: Opened
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> Self | None:
        """Open what a configuration begins with; None where that is fresh weights.

        Raises:
            CheckpointError, ConfigError: it is missing, damaged, or of no family that we know.
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
            This with the vocabulary, and the model with as many rows.

        Raises:
            CheckpointError: another family, other shapes, or another vocabulary unasked.
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
        return replace(self, vocabulary=Vocabulary(source, there, unchanged)), model

    def _tokenizer(self) -> Tokenizer | None:
        """The checkpoint's; None where it has none that can be read."""
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
        """What the user should know of the weights."""
        where = f"begins with the weights of {self.opened.path}"
        if (self.opened.path / manifest.NAME).is_file():
            record = manifest.read(self.opened.path)
            bits = record["state"].get("val_bits_per_byte")
            known = "" if bits is None else f", held-out {bits:.3f} on its own text"
            where = f"{where} (step {record['step']:,}{known})"
        resized = self.vocabulary is not None and not self.vocabulary.unchanged
        return (where, str(self.vocabulary)) if resized else (where,)

    def fill(self, arena: Arena, model: ModelConfig) -> None:
        """Write the weights into an arena that holds initial values.

        Raises:
            CheckpointError: some are not finite; they are named.
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
    """Say in which fields two models differ that may not."""
    ignored = checkpoint.NOT_ARCHITECTURE | {*OF_TRAINING}
    if "hidden_size" in here:  # which has two names in transformers' files
        ignored |= SPELLINGS.keys()
    for field in sorted((there.keys() | here.keys()) - ignored):
        if there.get(field) != here.get(field):
            yield checkpoint.difference(field, there.get(field), here.get(field))


def _by_text(there: Tokenizer, here: Tokenizer, rows: int, own_rows: int) -> NDArray[np.int64]:
    """Which row of one vocabulary each row of another is, by the bytes of its token; or -1."""
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
