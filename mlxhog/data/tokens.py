"""A token file: every token of a text in one memory-mapped array.

    NAME.bin    the tokens, little endian uint16, or uint32 if the vocabulary needs it
    NAME.idx    (documents + 1) uint64: where each document starts, then the number of tokens
    NAME.len    (vocab) uint16: bytes of text that each id stands for, 0 for special tokens
    NAME.prompts  (documents) uint32: tokens of each document's prompt, if there are examples; see
                  `mlxhog.data.examples`
    NAME.json   format, dtype, tokens, documents, bos, vocab, bytes (of text), tokenizer_sha256,
                sha256 (of NAME.bin, then of NAME.prompts), split, source, examples (their number),
                changed (documents whose text the tokenizer has changed), decoded (bytes of the
                changed text, which the tokens spell)

Readers of nanoGPT's kind use the `.bin` alone. Every document starts with BOS, except for later
answers of a conversation, and the next BOS ends it. Sequence i of length T is tokens
[i T, i T + T + 1): inputs are all but the last, labels all but the first. Neighbouring sequences
overlap by one token, and a tail shorter than T + 1 is not used. In a file with examples the
sequences are its `ExampleRows`, of unequal lengths.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import flush, write_synced
from mlxhog.data.batch import Batch, empty_rows
from mlxhog.data.examples import Example, ExampleRows
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import DataError, message_of, shown

FORMAT = 1
_CHECKED_BYTES = 1 << 20
_COUNTED, _RUN = 1 << 24, 1 << 14  # most tokens that `frequencies` counts, and tokens per run


@dataclass(frozen=True)
class TokenFile:
    """An open token file; `TokenFile.open` makes one.

    Attributes:
        path: the `.bin`.
        tokens: all tokens, (n,) uint16 or uint32, a read-only mapping that processes share.
        starts: position of each document, (documents + 1,) uint64, a read-only mapping.
        byte_lengths: bytes of text of each id, (vocab,) int64.
        header: the fields of `NAME.json`.
        prompts: tokens of each document's prompt, (documents,) uint32; None without examples.
    """

    path: Path
    tokens: NDArray[np.unsignedinteger[Any]]
    starts: NDArray[np.uint64]
    byte_lengths: NDArray[np.int64]
    header: dict[str, Any]
    prompts: NDArray[np.uint32] | None = None
    _rows: dict[int, ExampleRows] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> TokenFile:
        """Map the token file `path`, a `.bin`, and check it against its header.

        Ids are checked in the first and the last MiB, others when they are read.

        Raises:
            DataError: a file is missing, its length or its ids do not fit the header.
        """
        try:
            header = plain_json.read(path.with_suffix(".json"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {shown(header['format'])}")
            n, documents, vocab = (header[name] for name in ("tokens", "documents", "vocab"))
            dtype = np.dtype(header["dtype"]).newbyteorder("<")
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"{path.with_suffix('.json')} is not the header of a token file of format {FORMAT}:"
                f" {message_of(error)}; {_WAY_OUT}"
            ) from error
        tokens = _map(path, dtype, n)
        starts = _map(path.with_suffix(".idx"), np.dtype("<u8"), documents + 1)
        lengths = _map(path.with_suffix(".len"), np.dtype("<u2"), vocab)
        prompts = None
        if header.get("examples"):
            prompts = _map(path.with_suffix(".prompts"), np.dtype("<u4"), documents)
        file = cls(path, tokens, starts, lengths.astype(np.int64), header, prompts)
        edge = _CHECKED_BYTES // tokens.itemsize
        file.check_known(tokens[:edge])
        file.check_known(tokens[max(0, n - edge) :])
        return file

    @property
    def n_tokens(self) -> int:
        """Number of tokens, separators included."""
        return len(self.tokens)

    @property
    def bos(self) -> int:
        """The id that starts every document."""
        return int(self.header["bos"])

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens and of the prompts' lengths, as the header states it."""
        return str(self.header["sha256"])

    def n_sequences(self, seq_len: int) -> int:
        """Return the number of whole sequences of `seq_len` inputs, or of rows with examples."""
        rows = self.rows(seq_len)
        return (self.n_tokens - 1) // seq_len if rows is None else len(rows)

    def rows(self, seq_len: int) -> ExampleRows | None:
        """Return the rows of a file with examples; None for a file without."""
        if self.prompts is None:
            return None
        if seq_len not in self._rows:
            self._rows[seq_len] = ExampleRows.of(
                self.starts, self.prompts, self.continues(), seq_len
            )
        return self._rows[seq_len]

    def continues(self) -> NDArray[np.bool_]:
        """Return whether each document belongs to the conversation before it, (documents,)."""
        firsts = self.tokens[self.starts[:-1].astype(np.int64).clip(max=self.n_tokens - 1)]
        return np.asarray((firsts != self.bos) & (np.arange(len(firsts)) > 0))

    def batch(self, indices: NDArray[np.int64], seq_len: int) -> Batch:
        """Return the sequences `indices`, (B,) int64, as one batch of B rows.

        Rows of examples are padded to the longest of them.

        Raises:
            DataError: an id is not in the vocabulary.

        Concurrency: any number of threads and processes may read at once.
        """
        if (table := self.rows(seq_len)) is not None:
            return self._examples(indices, table, seq_len)
        return self.batch_at(indices[:, None] * seq_len + np.arange(seq_len + 1))

    def batch_at(self, places: NDArray[np.int64]) -> Batch:
        """Return the tokens at some places, (B, T + 1), as one batch of B rows.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        rows = self.tokens[places].astype(np.int32)
        self.check_known(rows)
        x, y = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
        return Batch(x, y, self.n_bytes(places[:, 1:]))

    def bytes_at(self, places: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many bytes each of the tokens at some places spells."""
        return np.asarray(self.byte_lengths[self.tokens[places]])

    def n_bytes(self, places: slice | NDArray[np.int64]) -> int:
        """Return how many bytes of the original text the tokens at some places stand for.

        In a file whose tokenizer has changed the text, their share of it.
        """
        spelled = int(self.bytes_at(places).sum())
        decoded = self.header.get("decoded")
        return round(spelled * self.header["bytes"] / decoded) if decoded else spelled

    def row_bytes(self, seq_len: int, i: int) -> int:
        """Return how many bytes of text the counted labels of row i stand for."""
        table = self.rows(seq_len)
        begin, end, context = i * seq_len, (i + 1) * seq_len + 1, 0
        if table is not None:
            begin, context = int(table.begin[i]), int(table.context[i])
            # The BOS that ends an answer is not in the file where the conversation continues.
            end = begin + int(table.length[i]) + 1 - int(table.ends[i])
        return self.n_bytes(slice(begin + context + 1, end))

    def _examples(self, indices: NDArray[np.int64], table: ExampleRows, seq_len: int) -> Batch:
        x, y = empty_rows(len(indices), int(table.length[indices].max(initial=1)))
        for row, i in enumerate(indices.tolist()):
            table.fill(self.tokens, self.bos, i, x[row], y[row])
        self.check_known(x)
        self.check_known(y)
        return Batch(x, y, sum(self.row_bytes(seq_len, i) for i in indices.tolist()))

    def check_known(self, ids: NDArray[np.integer[Any]]) -> None:
        """Refuse ids outside of the vocabulary; `open` does not check every id.

        Raises:
            DataError: an id is outside of the vocabulary.
        """
        vocab = self.header["vocab"]
        if ids.size and int(ids.max()) >= vocab:
            raise DataError(
                f"{self.path}: token {ids.max()} is outside the vocabulary of {vocab}; {_WAY_OUT}"
            )

    def sampled(self, most: int, run: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return all ids, or of more than `most` those of evenly spaced runs of `run` ids each."""
        if self.n_tokens <= most:
            return self.tokens
        starts = np.linspace(0, self.n_tokens - run, most // run).astype(np.int64)
        return np.concatenate([self.tokens[start : start + run] for start in starts.tolist()])

    def frequencies(self, vocab: int) -> NDArray[np.int64]:
        """Number of occurrences of each id, (vocab,), in a sample of a long file.

        Deterministic: every process gets the same counts.
        """
        return np.bincount(self.sampled(_COUNTED, _RUN), minlength=vocab)


_WAY_OUT = "prepare the corpus again"


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    try:
        size = path.stat().st_size
        if count < 1 or size != count * dtype.itemsize:
            raise ValueError(f"{size} bytes, expected {count} items of {dtype.itemsize}")
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {message_of(error)}; {_WAY_OUT}") from error


def item_size(tokenizer: Tokenizer) -> int:
    """Return the number of bytes of one token in a file."""
    return 2 if tokenizer.vocab_size <= 65_536 else 4


class TokenWriter:
    """Appends documents to a new token file; leaving the `with` block completes it.

    Each document is written at once, so memory does not grow. The files are flushed to the disk but
    not renamed: the caller writes into a directory that it renames when all files are whole.

    Args:
        path: the `.bin` to create.
        tokenizer: the tokenizer.
        split: `train` or `val`, for the header.
        source: the name of the corpus, for the header.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, split: str, source: str) -> None:
        self._path, self._tokenizer = path, tokenizer
        self._split, self._source = split, source
        self._dtype = np.dtype(f"<u{item_size(tokenizer)}")
        self._lengths = tokenizer.byte_lengths().astype("<u2")
        self._bos = np.array([tokenizer.bos], self._dtype).tobytes()
        self._hash = hashlib.sha256()
        self._starts = [0]
        self._prompts = array("I")
        self._examples = self._n_bytes = self._decoded = 0
        self.changed = 0
        """Number of documents whose text the tokenizer has changed."""
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def add(self, document: bytes) -> None:
        """Append BOS and the tokens of one document; contexts and answers are encoded apart."""
        self.add_all([document])

    def add_all(self, documents: Sequence[bytes]) -> None:
        """Append several documents, which are encoded together."""
        turns = [
            list(one.turns()) if isinstance(one, Example) else [(b"", one)] for one in documents
        ]
        encoded = iter(
            self._tokenizer.encode_all([part for one in turns for turn in one for part in turn])
        )
        for document, own in zip(documents, turns, strict=True):
            self._examples += len(own) * isinstance(document, Example)
            parts = [(next(encoded), next(encoded)) for _ in own]
            self.changed += any(
                self._tokenizer.changes_text(text, ids)
                for texts, both in zip(own, parts, strict=True)
                for text, ids in zip(texts, both, strict=True)
            )
            self._n_bytes += sum(len(text) for texts in own for text in texts)
            for number, (context, answer) in enumerate(parts):
                self._append(context, answer, continues=number > 0)

    def _append(
        self, context: NDArray[np.int32], answer: NDArray[np.int32], *, continues: bool
    ) -> None:
        """Append a prompt and its text, behind BOS unless they continue a conversation."""
        self._prompts.append(len(context) - continues)
        ids = np.concatenate([context, answer])
        self._decoded += int(self._lengths[ids].sum(dtype=np.int64))
        block = self._bos * (not continues) + ids.astype(self._dtype).tobytes()
        self._hash.update(block)
        self._file.write(block)
        self._starts.append(self._starts[-1] + len(block) // self._dtype.itemsize)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Complete the file; after an error only close it."""
        if error is not None:
            self._file.close()
            return
        with self._file:
            self._file.flush()
            flush(self._file.fileno())
        write_synced(self._path.with_suffix(".idx"), np.array(self._starts, "<u8").tobytes())
        write_synced(self._path.with_suffix(".len"), self._lengths.tobytes())
        if self._examples:
            prompts = np.array(self._prompts, "<u4").tobytes()
            write_synced(self._path.with_suffix(".prompts"), prompts)
            self._hash.update(prompts)
        header = {
            "format": FORMAT,
            "dtype": f"uint{8 * self._dtype.itemsize}",
            "tokens": self._starts[-1],
            "documents": len(self._starts) - 1,
            "bos": self._tokenizer.bos,
            "vocab": self._tokenizer.vocab_size,
            "bytes": self._n_bytes,
            "tokenizer_sha256": self._tokenizer.sha256,
            "sha256": self._hash.hexdigest(),
            "split": self._split,
            "source": self._source,
            "examples": self._examples,
            "changed": self.changed,
            "decoded": self._decoded,
        }
        write_synced(self._path.with_suffix(".json"), json.dumps(header, indent=1).encode())
