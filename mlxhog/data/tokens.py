"""A token file: every token of a text in one memory-mapped array.

    NAME.bin    the tokens, little endian uint16, or uint32 if the vocabulary needs it
    NAME.idx    (documents + 1) uint64: where each document starts, then the number of tokens
    NAME.len    (vocab) uint16: bytes of text that each id stands for, 0 for special tokens
    NAME.prompts  (documents) uint32: tokens of each document's prompt, behind its first; only if
                  there are examples
    NAME.json   format, dtype, tokens, documents, bos, vocab, bytes (of text), tokenizer_sha256,
                sha256 (of NAME.bin, then of NAME.prompts), split, source, examples (their number),
                changed (documents whose text the tokenizer has changed), decoded (bytes of the
                changed text, which the tokens decode to)

The `.bin` alone is nanoGPT's format. Every document begins with BOS, and the next BOS ends it. Each
answer of a conversation is a document with the context before it; only the first begins with BOS.

Sequence i of length T is tokens [i T, i T + T + 1): inputs are all but the last, labels all but the
first. Neighboring sequences overlap by one token, and a tail shorter than T + 1 is not used. In a
file with examples they are its `ExampleRows`, of unequal lengths.

An open token file stays readable when it is removed: it keeps its descriptors, which a process that
is spawned with it inherits. So a run needs the cache only at its start.
"""

import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import mapped, plain_json
from mlxhog.base.disk import flush
from mlxhog.base.durable import write_synced
from mlxhog.base.reading import regular
from mlxhog.data.batch import IGNORED, Batch, padded
from mlxhog.data.records import Example
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, message_of, shown

Int64 = NDArray[np.int64]
FORMAT = 1
_CHECKED_BYTES = 1 << 20
_COUNTED, _RUN = 1 << 24, 1 << 14  # most tokens that `frequencies` counts, and tokens per run
_TOGETHER = 1 << 22  # bytes of text that are encoded together
_WAY_OUT = "prepare the corpus again"


@dataclass(frozen=True)
class ExampleRows:
    """The rows of a token file with examples: for each answer BOS, its context, the answer, BOS.

    The loss counts the answer and its end. A context loses its beginning if the row would have more
    than `seq_len` labels, and a row that is still too long is cut into several. Documents without a
    prompt may be mixed with examples. Arrays are (rows,).
    """

    begin: Int64  # position of each row's first token
    length: Int64  # number of its inputs and of its labels, from 1 to `seq_len`
    context: Int64  # number of its first labels that belong to the prompt
    ends: NDArray[np.bool_]  # whether its last label is the BOS that ends its document
    document: Int64  # number of its document
    cut: int  # number of answers whose context has lost its beginning
    longest: int  # number of labels of the longest of these before that

    @classmethod
    def of(
        cls,
        starts: NDArray[np.unsignedinteger[Any]],
        prompts: NDArray[Any],
        continues: NDArray[np.bool_],
        seq_len: int,
    ) -> Self:
        """Lay out rows of at most `seq_len` inputs from the arrays of a `TokenFile`.

        `continues` says whether a document belongs to the conversation before it, (documents,).
        """
        bounds = starts.astype(np.int64)
        first = np.maximum.accumulate(np.where(continues, 0, np.arange(len(continues))))
        begins = bounds[:-1][first]
        context = bounds[:-1] - begins + prompts.astype(np.int64)
        lengths = bounds[1:] - begins
        skipped = np.clip(lengths - seq_len, 0, context)
        rest = lengths - skipped
        counts = -(-rest // seq_len)
        document = np.repeat(np.arange(len(lengths)), counts)
        place = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(
            begin=(begins + skipped)[document] + place * seq_len,
            length=np.minimum(rest[document] - place * seq_len, seq_len),
            context=np.where(place == 0, (context - skipped)[document], 0),
            ends=place == counts[document] - 1,
            document=document,
            cut=int((skipped > 0).sum()),
            longest=int(lengths[skipped > 0].max(initial=0)),
        )

    def __len__(self) -> int:
        return len(self.begin)


class _Descriptor:
    """An open file, which a process inherits if this is sent to it at its spawn."""

    def __init__(self, fd: int) -> None:
        self._fd = fd  # owned

    def __reduce__(self) -> "tuple[Callable[[Any], _Descriptor], tuple[Any]]":
        return _inherited, (reduction.DupFd(self._fd),)

    def __del__(self) -> None:
        os.close(self._fd)

    def map(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Map the file, of `count` items, read-only; a ValueError if it has another size."""
        size = os.fstat(self._fd).st_size
        if count < 1 or size != count * dtype.itemsize:
            raise ValueError(f"{size} bytes, expected {count} items of {dtype.itemsize}")
        return mapped.map_open(self._fd).view(dtype)

    def lock(self, flags: int) -> None:
        """Lock the file, until no process has this descriptor."""
        fcntl.flock(self._fd, flags)


def _inherited(descriptor: Any) -> _Descriptor:
    return _Descriptor(descriptor.detach())


@dataclass(frozen=True)
class TokenFile:
    """An open token file; `TokenFile.open` maps its arrays read-only.

    A process that is spawned with it has the same files. Other pickles have its path: their reader
    uses the file with which it was spawned, or opens the path.

    Concurrency: any number of threads and processes may read at once.
    """

    path: Path  # of the `.bin`
    tokens: NDArray[np.unsignedinteger[Any]]  # all tokens, (n,) uint16 or uint32
    starts: NDArray[np.uint64]  # position of each document, (documents + 1,)
    byte_lengths: Int64  # bytes of text of each id, (vocab,)
    header: dict[str, Any]  # the fields of `NAME.json`
    prompts: NDArray[np.uint32] | None = None  # tokens of each document's prompt, (documents,)
    _descriptors: dict[str, _Descriptor] = field(  # by suffix; none of a part of a file
        default_factory=dict, init=False, repr=False, compare=False
    )
    _rows: dict[int, ExampleRows] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def open(cls, path: Path) -> "TokenFile":
        """Map the token file `path`, a `.bin`, and check it against its header.

        Ids are checked in the first and the last MiB, others when they are read.

        Raises:
            DataError: a file is missing, its length or its ids do not fit the header.
        """
        try:
            header = plain_json.read(path.with_suffix(".json"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {shown(header['format'])}")
            _shape(header)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"{path.with_suffix('.json')} is not the header of a token file of format {FORMAT}:"
                f" {message_of(error)}; {_WAY_OUT}"
            ) from error
        descriptors = dict[str, _Descriptor]()
        for suffix in _shape(header):
            at = path.with_suffix(suffix)
            try:
                descriptors[suffix] = _Descriptor(regular(at, os.O_RDONLY))
            except OSError as error:
                raise _unreadable(at, error) from error
        file = cls._of(path, header, descriptors)
        edge = _CHECKED_BYTES // file.tokens.itemsize
        file.ids(0, edge)
        file.ids(max(0, file.n_tokens - edge), file.n_tokens)
        return file

    @classmethod
    def _of(
        cls, path: Path, header: dict[str, Any], descriptors: Mapping[str, _Descriptor]
    ) -> "TokenFile":
        arrays = dict[str, NDArray[Any]]()
        for suffix, (dtype, count) in _shape(header).items():
            try:
                arrays[suffix] = descriptors[suffix].map(dtype, count)
            except (OSError, ValueError) as error:
                raise _unreadable(path.with_suffix(suffix), error) from error
        lengths, prompts = arrays[".len"].astype(np.int64), arrays.get(".prompts")
        file = cls(path, arrays[".bin"], arrays[".idx"], lengths, header, prompts)
        file._descriptors.update(descriptors)
        return file

    def __reduce__(self) -> "tuple[Callable[..., TokenFile], tuple[Any, ...]]":
        if not self._descriptors:
            arrays = self.tokens, self.starts, self.byte_lengths
            return TokenFile, (self.path, *arrays, self.header, self.prompts)
        if context.get_spawning_popen() is None:
            return _known, (self.path,)
        return _received, (self.path, self.header, self._descriptors)

    def hold(self) -> None:
        """Mark the file as in use while a process has it open; see `locks.is_in_use`."""
        with suppress(OSError):  # a disk may have no locks
            self._descriptors[".bin"].lock(fcntl.LOCK_SH)

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
        """SHA-256 of the tokens and prompts' lengths, from the header."""
        return str(self.header["sha256"])

    def digest_of(self, documents: int) -> str:
        """Return the digest of the first documents alone; "" if there are fewer."""
        if documents >= len(self.starts):
            return ""
        end, step = int(self.starts[documents]), _COUNTED
        digest = hashlib.sha256()
        for first in range(0, end, step):
            digest.update(self.ids(first, min(end, first + step)).tobytes())
        if self.prompts is not None:
            digest.update(self.prompts[:documents].tobytes())
        return digest.hexdigest()

    def n_sequences(self, seq_len: int) -> int:
        """Return the number of sequences, whole ones of plain text."""
        rows = self.rows(seq_len)
        return (self.n_tokens - 1) // seq_len if rows is None else len(rows)

    def epoch_tokens(self, seq_len: int) -> int:
        """Return the tokens of all sequences."""
        rows = self.rows(seq_len)
        return self.n_sequences(seq_len) * seq_len if rows is None else int(rows.length.sum())

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

    def read(
        self, indices: Int64, seq_len: int, width: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return inputs and labels of sequences, (B, width) each; the last may be shorter.

        Labels of prompts and of padding are `IGNORED`. Padded inputs repeat the last token, so no
        other row of the embedding is read.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        table = self.rows(seq_len)
        if table is None:
            begin = indices * seq_len
            length = np.minimum(seq_len, self.n_tokens - 1 - begin)
            context, ends = np.zeros_like(begin), np.zeros(len(begin), bool)
        else:
            every = (table.begin, table.length, table.context)
            begin, length, context = (part[indices] for part in every)
            ends = table.ends[indices]
        x, y = (np.empty((len(begin), width), np.int32) for _ in "xy")
        for k, (first, n) in enumerate(zip(begin.tolist(), length.tolist(), strict=True)):
            ids = self.ids(first, first + n + 1)
            x[k, :n], x[k, n:] = ids[:n], ids[n - 1]
            y[k, : len(ids) - 1], y[k, len(ids) - 1 :] = ids[1:], ids[-1]
        place, last = np.arange(width), length[:, None] - 1
        y[np.flatnonzero(ends), length[ends] - 1] = self.bos
        y[(place < context[:, None]) | (place > last)] = IGNORED
        return x, y

    def ids(self, first: int, end: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return consecutive ids, in memory: reading a mapping may end in a bus error.

        Raises:
            DataError: an id is not in the vocabulary, or the file has been shortened.
        """
        try:
            ids = mapped.in_memory(self.tokens[first:end])
        except CheckpointError as error:
            raise DataError(f"{self.path}: {error}; {_WAY_OUT}") from error
        self.check_known(ids)
        return ids

    def batch(self, indices: Int64, seq_len: int) -> Batch:
        """Return the sequences `indices`, (B,) int64, as a batch, padded to the longest."""
        table, width = self.rows(seq_len), seq_len
        if table is not None:
            width = padded(int(table.length[indices].max(initial=1)))
        x, y = self.read(indices, seq_len, width)
        return Batch(x, y, self.text_bytes(y))

    def text_bytes(self, ids: NDArray[np.integer[Any]]) -> int:
        """Return the bytes of the original text of tokens, without `IGNORED`.

        Where the tokenizer has changed the text, it is their share of all bytes.
        """
        n_bytes = int(self.byte_lengths[ids[ids != IGNORED]].sum())
        decoded = self.header.get("decoded")
        return round(n_bytes * self.header["bytes"] / decoded) if decoded else n_bytes

    def check_known(self, ids: NDArray[np.integer[Any]]) -> None:
        """Raise DataError for ids outside of the vocabulary; `open` does not check every id."""
        vocab = self.header["vocab"]
        if ids.size and ids.max() >= vocab:
            raise DataError(
                f"{self.path}: token {ids.max()} is outside the vocabulary of {vocab}; {_WAY_OUT}"
            )

    def sampled(self, most: int, run: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return all ids, or above `most` evenly spaced spans of `run` ids each."""
        if self.n_tokens <= most:
            return self.ids(0, self.n_tokens)
        starts = np.linspace(0, self.n_tokens - run, most // run).astype(np.int64)
        return np.concatenate([self.ids(start, start + run) for start in starts.tolist()])

    def frequencies(self, vocab: int) -> Int64:
        """Return the occurrences of each id, (vocab,), in a deterministic sample."""
        return np.bincount(self.sampled(_COUNTED, _RUN), minlength=vocab)


def _shape(header: Mapping[str, Any]) -> dict[str, tuple[np.dtype[Any], int]]:
    n, documents, vocab = (header[name] for name in ("tokens", "documents", "vocab"))
    shape: dict[str, tuple[np.dtype[Any], int]] = {
        ".bin": (np.dtype(header["dtype"]).newbyteorder("<"), n),
        ".idx": (np.dtype("<u8"), documents + 1),
        ".len": (np.dtype("<u2"), vocab),
    }
    return shape | ({".prompts": (np.dtype("<u4"), documents)} if header.get("examples") else {})


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {message_of(error)}; {_WAY_OUT}")


_with_this_process: dict[Path, TokenFile] = {}  # files with which this process was spawned


def _received(
    path: Path, header: dict[str, Any], descriptors: Mapping[str, _Descriptor]
) -> TokenFile:
    return _with_this_process.setdefault(path, TokenFile._of(path, header, descriptors))


def _known(path: Path) -> TokenFile:
    return _with_this_process.get(path) or TokenFile.open(path)


def item_size(tokenizer: Tokenizer) -> int:
    """Return the number of bytes of one token in a file."""
    return 2 if tokenizer.vocab_size <= 65_536 else 4


class TokenWriter:
    """Appends documents to a new token file, which is complete at the end of the `with` block.

    Some MiB of documents are encoded together, in parallel, so memory does not grow. The caller
    renames the files' directory. `split` (`train` or `val`) and `source` are for the header.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, split: str, source: str) -> None:
        self._path, self._tokenizer = path, tokenizer
        self._names = {"split": split, "source": source}
        self._dtype = np.dtype(f"<u{item_size(tokenizer)}")
        self._lengths = tokenizer.byte_lengths().astype("<u2")
        self._bos = np.array([tokenizer.bos], self._dtype).tobytes()
        self._hash, self._starts, self._prompts = hashlib.sha256(), [0], array("I")
        self._examples = self._changed = self._n_bytes = self._decoded = self._waiting_bytes = 0
        self._waiting = list[bytes]()
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def add(self, document: bytes) -> None:
        """Append BOS and the tokens of a document, with contexts and answers encoded apart."""
        self._waiting.append(document)
        self._waiting_bytes += len(document)
        if self._waiting_bytes >= _TOGETHER:
            self._write()

    def _write(self) -> None:
        turns = [one.turns() if isinstance(one, Example) else [(b"", one)] for one in self._waiting]
        texts = [text for one in turns for turn in one for text in turn]
        encoded = zip(texts, self._tokenizer.encode_all(texts), strict=True)
        for document, own in zip(self._waiting, turns, strict=True):
            self._examples += len(own) * isinstance(document, Example)
            pieces = [next(encoded) for turn in own for _ in turn]
            self._changed += any(self._tokenizer.decode(ids) != text for text, ids in pieces)
            for k in range(0, len(pieces), 2):
                self._append(pieces[k][1], pieces[k + 1][1], continues=k > 0)
        self._n_bytes += sum(map(len, texts))
        self._waiting, self._waiting_bytes = [], 0

    def _append(
        self, context: NDArray[np.int32], answer: NDArray[np.int32], *, continues: bool
    ) -> None:
        """Append a prompt and its text, after BOS unless they continue a conversation."""
        self._prompts.append(len(context) - continues)
        ids = np.concatenate([context, answer])
        self._decoded += int(self._lengths[ids].sum(dtype=np.int64))
        block = self._bos * (not continues) + ids.astype(self._dtype).tobytes()
        self._hash.update(block)
        self._file.write(block)
        self._starts.append(self._starts[-1] + len(block) // self._dtype.itemsize)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._file.close()
            return
        with self._file:
            self._write()
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
            **self._names,
            "examples": self._examples,
            "changed": self._changed,
            "decoded": self._decoded,
        }
        write_synced(self._path.with_suffix(".json"), json.dumps(header, indent=1).encode())
