"""Score a model's prediction of text: sums of its loss, bits per byte, perplexity.

A file's text is cut into sequences, each from the initial state, as in the validation of a run, so
that the numbers can be compared with those of training, and between tokenizers. A document is read
from begin to end with one state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.backends.backend import Backend
from mlxhog.data import corpora, prepare, validation_set
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.errors import DataError, Diverged
from mlxhog.models.families import ModelConfig, check_length, param_count

SCORED_TOKENS = 2048  # most tokens of a document whose logits are computed at once
SCORED_LOGITS = 2**24  # most elements of these logits


@dataclass(frozen=True)
class TextScore:
    """Sums over a text; scores of several texts can be added."""

    nats: float = 0.0  # cross entropy of all tokens except the first of each document
    n_bytes: int = 0  # number of bytes of text
    tokens: int = 0  # number of predicted tokens

    def __add__(self, other: "TextScore") -> "TextScore":
        """Return the score of both texts together."""
        return TextScore(
            self.nats + other.nats, self.n_bytes + other.n_bytes, self.tokens + other.tokens
        )

    @property
    def bits_per_byte(self) -> float | None:
        """Cross entropy per byte of text in bits, None without text."""
        return validation_set.bits_per_byte(self.nats, self.n_bytes) if self.n_bytes else None

    @property
    def perplexity(self) -> float | None:
        """Exponential of the loss per token, at most e^700; None without tokens.

        It depends on the tokenizer.
        """
        return math.exp(min(self.nats / self.tokens, 700.0)) if self.tokens else None

    def to_json(self) -> dict[str, Any]:
        """Return its numbers for `json.dumps`."""
        numbers = {"bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity}
        return {**numbers, "nats": self.nats, "bytes": self.n_bytes, "tokens": self.tokens}


def token_files(
    tokenizer: Tokenizer, corpus: corpora.Corpus, folder: Path
) -> Iterator[tuple[str, TokenFile | None]]:
    """Yield name and tokens of each file of a corpus, None without text; stored in `folder`.

    Raises:
        DataError: the corpus is malformed.
    """
    for number, part in enumerate(corpus.parts):
        path, empty = folder / f"{number}.bin", True
        with TokenWriter(path, tokenizer, split="val", source=path.name) as writer:
            for document in part.read():
                writer.add(document)
                empty = False
        yield part.name, None if empty else TokenFile.open(path)


def val_tokens(of_model: Tokenizer, data: str, **options: Any) -> TokenFile:
    """Return the validation tokens of a run, prepared by the options of its training.

    Raises:
        DataError: the text is missing, or its tokenizer is another one than at training.
    """
    prepared = prepare.prepare(data, **options)
    if prepared.tokenizer.sha256 != of_model.sha256:
        raise DataError(
            f"{data} has changed since the run was trained: its tokenizer has another digest; "
            "give the text with --data"
        )
    return prepared.val


def score(
    backend: Backend, config: ModelConfig, file: TokenFile, *, seq_len: int,
    progress: Callable[[float], None] = lambda share: None,
) -> TextScore:  # fmt: skip
    """Score the tokens of a file, cut into sequences of `seq_len`.

    `progress` is called after every batch with the share done, 0 to 1.

    Raises:
        Diverged: the model's loss is not finite.
    """
    seq_len = min(seq_len, max(SCORED_TOKENS, file.n_tokens))  # rows are padded to it
    rows = validation_set.rows_of_batch(param_count(config), seq_len)
    how: dict[str, Any] = {"seq_len": seq_len, "batch_size": rows}
    n_batches, total = validation_set.n_batches(file, **how), TextScore()
    for number, batch in enumerate(validation_set.batches(file, **how), start=1):
        result = backend.evaluate(batch)
        total += TextScore(result.nats, batch.n_bytes, result.targets)
        progress(number / n_batches)
    if not math.isfinite(total.nats):
        raise Diverged("the loss on this text is not finite; use an earlier checkpoint")
    return total


def score_document(
    backend: Backend, config: ModelConfig, tokenizer: Tokenizer, text: str
) -> TextScore:
    """Score a text, which is not empty, as one document.

    Raises:
        ConfigError: the text has more tokens than the model has positions for.
        Diverged: the model's logits are not finite.
    """
    content = text.encode()
    ids = tokenizer.encode(content)
    check_length(config, len(ids))
    before = np.concatenate([[tokenizer.bos], ids[:-1]]).astype(np.int32)
    step = min(SCORED_TOKENS, max(1, SCORED_LOGITS // config.vocab_size))
    nats, state = 0.0, None
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        logits, state = backend.all_logits(before[None, part], state)
        best = logits[0].max(axis=-1, keepdims=True)
        sums = np.exp(logits[0] - best).sum(axis=-1, dtype=np.float64)
        of_ids = np.take_along_axis(logits[0], ids[part, None].astype(np.int64), axis=-1) - best
        nats += float((np.log(sums) - of_ids[:, 0].astype(np.float64)).sum())
    if not math.isfinite(nats):
        raise Diverged("the model's logits are not finite; load an earlier checkpoint")
    return TextScore(nats, len(content), len(ids))
