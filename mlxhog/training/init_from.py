"""Initial weights of a new run from the checkpoint that `init_from` names.

They are read under our names, whichever program wrote them; the optimizer restarts, and the text
may be another. The model's equations and shapes must be the checkpoint's. With `resize_vocab` its
vocabulary, the rows of embedding and head, may be another: a row is kept if both tokenizers have a
token of the same bytes; other rows get initial values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.base import mapped, plain_yaml
from mlxhog.base.quantities import format_count
from mlxhog.checkpoint import checkpoint, manifest
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import run_of
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.data.prepare import Prepared, prepare
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import CheckpointError, ConfigError, DataError, MlxhogError
from mlxhog.models import families, ngrams, registry
from mlxhog.models.families import ModelConfig, param_count
from mlxhog.models.xlstm_large import SPELLINGS
from mlxhog.training.resume import Resumption, score_of

OF_TRAINING = ("dropout", "reset_at_document_boundaries", "context_length", "vocab_size")
"""Fields in which a model may differ from the checkpoint of its initial weights."""

MOST_DIFFERENCES = 6
PROBES, PROBE_BYTES = 32, 256
LEAST_SEEN = 0.05
"""Share of the pieces from which on a note is given; boilerplate stands in many texts."""
MOST_ORIGINS = 8
MOST_SEARCHED = 64_000_000
"""Tokens of the largest training text that is searched, in about two seconds."""
SEARCHED_TOGETHER = 1 << 22


def located(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the path of the checkpoint that `init_from` names now.

    Raises:
        RunError, CheckpointError: that checkpoint does not exist.
    """
    if config.init_from is None:
        return config
    path = checkpoint.locate(config.init_from, Path(config.out))
    return config.having(init_from=str(path))


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
        config = config.having(model=str(path))
    if config.tokenizer == "auto":
        folder = path if path.is_dir() else path.parent
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} holds no tokenizer.json, so nothing says what its ids mean; name the "
                "tokenizer of its training text with --tokenizer"
            )
        config = config.having(tokenizer=str(folder))
    return config


def sets_vocabulary(config: TrainConfig) -> bool:
    """Whether `set` gives the size of the vocabulary."""
    return "vocab_size" in plain_yaml.assignments(config.set)


def keeps_vocabulary(config: TrainConfig) -> bool:
    """Whether the model's vocabulary is its own: of a checkpoint, or given by `set`."""
    return registry.is_stored(config.model) or sets_vocabulary(config)


def fitted(
    config: TrainConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    resumption: Resumption | None,
    note: Callable[[str], None],
) -> ModelConfig:
    """The model over the tokenizer's ids; `note` gets what the user should know.

    A resumed run has its checkpoint's vocabulary; that of a config.json is kept.

    Raises:
        ConfigError: a vocabulary that is kept is smaller than the tokenizer's.
    """
    own, rows, spec = model.vocab_size, tokenizer.vocab_size, config.tokenizer
    if resumption is not None:
        rows = families.read(resumption.checkpoint.config).vocab_size
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows)
    size = spec.removeprefix("bpe:")
    if size != spec and tokenizer.n_ids < int(size):
        note(
            f"tokenizer {spec} learnt {tokenizer.n_ids:,} ids: this text has no more pairs to merge"
        )
    if keeps_vocabulary(config):
        check_vocabulary(config, model, tokenizer)
        if own > rows and registry.is_stored(config.model):
            note(
                f"model {config.model} keeps its vocabulary of {own:,}; tokenizer {spec} needs "
                f"{rows:,} of it (--set vocab_size={rows})"
            )
        return families.for_tokens(model, bos=tokenizer.bos, vocab_size=own)
    fitted = families.for_tokens(model, bos=tokenizer.bos, vocab_size=rows)
    if own != rows:
        note(
            f"vocabulary {rows:,}, that of tokenizer {spec}, in place of {own:,} of model "
            f"{Path(config.model).name}: {format_count(param_count(fitted))} parameters, not "
            f"{format_count(param_count(model))}"
        )
    return fitted


def check_vocabulary(config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
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


@dataclass(frozen=True)
class InitialWeights:
    """An open checkpoint, and the mapping of its vocabulary to the model's.

    `rows` has for each row of the run's vocabulary the checkpoint's row or -1, (V,) int64; it is
    None if both vocabularies are the same.
    """

    opened: Opened
    rows: NDArray[np.int64] | None = None

    def fitted(
        self, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, *, own: bool
    ) -> tuple[Self, ModelConfig]:
        """This with the rows for a run's model and tokenizer, and the model with as many rows.

        The vocabulary of the checkpoint's `own` model follows the text.

        Raises:
            CheckpointError: another family, other shapes, or another vocabulary without
                `resize_vocab`.
        """
        self._check_model(config, model)
        before, there = None, self.opened.config.vocab_size
        with suppress(MlxhogError):  # it may have no readable one
            before = self.opened.tokenizer()
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
            model = replace(model, vocab_size=there if fits else tokenizer.vocab_size)
        if model.vocab_size != there and not config.resize_vocab:
            raise CheckpointError(
                f"{self.opened.path} has a vocabulary of {there:,} rows, the model here of "
                f"{model.vocab_size:,}; add --resize-vocab, which keeps the rows of tokens with "
                "the same text, or leave --model out to train the checkpoint's own"
            )
        if same and model.vocab_size == there:
            return replace(self, rows=None), model
        if ngrams.of(model) is not None:
            raise CheckpointError(
                f"{self.opened.path} has tables of n-grams of its own tokenizer's ids, so its "
                "vocabulary cannot be resized; leave --tokenizer and --resize-vocab out"
            )
        rows = np.arange(model.vocab_size)
        rows[rows >= there] = -1
        if before is not None and not same:
            rows = _by_text(before, tokenizer, there, model.vocab_size)
        return replace(self, rows=rows), model

    def _check_model(self, config: TrainConfig, model: ModelConfig) -> None:
        there = self.opened.config
        way_out = (
            "leave --model out to train the checkpoint's own model, or --init-from to begin with "
            "new weights"
        )
        if there.model_type != model.model_type:
            raise CheckpointError(
                f"{self.opened.path} is a model of the family {there.title} "
                f"({there.model_type}), {config.model} one of {model.title} "
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
        if self.rows is None:
            return (where,)
        rows, kept = len(self.rows), int((self.rows >= 0).sum())
        return (
            where,
            f"vocabulary resized from {self.opened.config.vocab_size:,} to {rows:,} rows: {kept:,} "
            f"are kept, of tokens with the same text, and {rows - kept:,} begin as at "
            "initialisation",
        )

    def fill(self, arena: Arena, model: ModelConfig) -> None:
        """Write the weights into an arena that holds initial values.

        Raises:
            CheckpointError: some weights are not finite; the message names them.
        """
        by_rows = {families.embedding(model), families.head(model), families.head_bias(model)}
        damaged = []
        for name, tensor in self.opened.tensors.items():
            slot = arena.param(name)
            if self.rows is None or name not in by_rows:
                finite = mapped.copy(tensor, slot)
            else:
                whole = np.empty(tensor.shape, np.float32)
                finite = mapped.copy(tensor, whole)
                known = self.rows >= 0
                slot[known] = whole[self.rows[known]]
            if not finite:
                damaged.append(name)
        refuse_not_finite(damaged, self.opened.path)


def seen_before(origin: str, data: Prepared) -> tuple[str, str]:
    """Search the held-out text of a run in the training text of the runs before it.

    `PROBES` pieces of the held-out text stand for all of it.

    Args:
        origin: checkpoint of the initial weights.
        data: text of the run.

    Returns:
        A note on a score that is too good, and one if this could not be checked; "" for none.
    """
    val, names = TokenFile.open(data.val), list[str]()
    pieces = _pieces(val, data.tokenizer)
    seen, unknown = np.zeros(len(pieces), bool), ""
    before_it: str | None = origin
    while before_it is not None and len(names) < MOST_ORIGINS:
        path, before_it = Path(before_it).resolve(), None
        if (run := run_of(path)) is None:
            break
        names.append(run.name)
        try:
            options = train_config([run.options(data="")])
            before_it = options.init_from
            own = manifest.read(path)["state"].get("held_out_sha256")
            if own == val.digest:
                continue  # it held out the same text
            options = train_config([run.options()])
            before = prepare(
                options.data,
                tokenizer=options.tokenizer,
                text_key=options.text_key,
                loss_on=options.loss_on,
                skip_machine_data=options.skip_machine_data,
                val=options.val,
            )
            train = TokenFile.open(before.train)
        except MlxhogError as error:
            unknown = f"not checked whether {run.name} trained on the held-out text: {error}"
            continue
        if train.n_tokens > MOST_SEARCHED:
            unknown = f"not checked whether {run.name} trained on the held-out text: it is large"
        elif (before.corpus_sha256, before.rule) != (data.corpus_sha256, data.rule):
            stands = [_stands_in(train, before.tokenizer, piece) for piece in pieces]
            seen |= np.array(stands, bool)
    share = float(seen.mean()) if len(pieces) else 0.0
    if share < LEAST_SEEN:
        return "", unknown
    return (
        f"{share:.0%} of the held-out text is training text of {' or '.join(names)}, whose weights "
        "this began with: it is no score of new text",
        unknown,
    )


def _pieces(file: TokenFile, tokenizer: Tokenizer) -> list[bytes]:
    """Up to `PROBES` pieces of the documents of a file, at even distances."""
    pieces = {}
    for place in np.linspace(0, file.n_tokens - 1, PROBES).astype(int).tolist():
        document = int(np.searchsorted(file.starts, place, side="right")) - 1
        begin, end = int(file.starts[document]) + 1, int(file.starts[document + 1])
        begin = max(begin, min(place, end - PROBE_BYTES))
        ids = file.tokens[begin : min(end, begin + PROBE_BYTES)].astype(np.int32)
        piece = tokenizer.decode(ids)[:PROBE_BYTES]
        if len(piece) >= PROBE_BYTES // 4:
            pieces[begin] = piece
    return list(pieces.values())


def _stands_in(file: TokenFile, tokenizer: Tokenizer, piece: bytes) -> bool:
    """Whether a token file has a piece of text, apart from the tokens at its ends."""
    ids = tokenizer.encode(piece)
    needle = np.asarray(ids[2:-2], file.tokens.dtype).tobytes()
    for begin in range(0, file.n_tokens, SEARCHED_TOGETHER):
        end = begin + SEARCHED_TOGETHER + len(ids)
        if len(ids) > 8 and needle in file.tokens[begin:end].tobytes():
            return True
    return False


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
