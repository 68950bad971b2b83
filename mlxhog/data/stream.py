"""Text that arrives while a run trains, in files of the run's folder that only grow.

    stream/rows.jsonl        a line for each ticket, a list of rows; a row is [number of its first
                             labels without loss, id, id, ...]; then, for several tickets, an
                             object: a `StreamChunk`
    stream/stream.json       seq_len: the limit for examples
    stream/examples.jsonl    examples of `append_examples`

The line of a chunk publishes the tickets before it; tickets without a chunk are of a killed
process. A published chunk never changes, so a ticket means the same rows in every process and after
every kill. Chunks name their files, so that each file is read once.

A document is BOS, its tokens, BOS, cut into rows of at most seq_len + 1 that overlap by one token.
An answer is one row: BOS, prompt, answer, BOS; its loss is only on the answer and the last BOS.
"""

import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, typed
from mlxhog.base.durable import append_lines, disk_errors, read_lines, replace_file
from mlxhog.base.inside import OpenFolder, subfolder
from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.data.records import Example, record_text, text_keys
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, RunError, shown

FOLDER = "stream"
ROWS, EXAMPLES, ABOUT = "rows.jsonl", "examples.jsonl", "stream.json"
TICKETS = 1024
"""Tickets of an "epoch" of the endless stream, whose tickets are epoch * TICKETS + ticket."""
_BLOCK = 1 << 20


class TrainingRow(NamedTuple):
    """Tokens, (n,) int32 with n >= 2, without loss on the first `masked` of their labels."""

    ids: NDArray[np.int32]
    masked: int = 0


@dataclass(frozen=True)
class SourceFile:
    """A file that was read: path below the followed folder, size, time, and any refusal."""

    name: str
    n_bytes: int
    changed_ns: int
    refused: str | None = None


@dataclass(frozen=True)
class StreamChunk:
    """Tickets that were published together."""

    end_ticket: int  # the ticket after its last
    examples_end: int  # bytes of `examples.jsonl` in this chunk and those before
    sources: tuple[SourceFile, ...]


@dataclass(frozen=True)
class _StreamAbout:
    """The content of `stream.json`."""

    seq_len: int


class Stream:
    """The published tickets of a folder; `update` finds new ones.

    `last` is the last chunk, an empty one at first; `sources` are the files of all chunks, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.open_folder = OpenFolder(folder)  # of a run that may be renamed
        self._begins, self._end = array("q"), 0  # of tickets, and of the next part
        self.last, self.sources = StreamChunk(0, 0, ()), dict[str, SourceFile]()

    @property
    def folder(self) -> Path:
        """The present path of the folder."""
        return self.open_folder.path

    @property
    def _path(self) -> Path:
        return self.folder / ROWS

    def update(self) -> Self:
        """Find the new chunks; DataError if one is damaged or the file cannot be read."""
        at, begins = self._end, array("q")
        if not at and not self._path.exists():  # nothing is published yet
            return self
        with self._reading():
            while lines := read_lines(self._path, at, _BLOCK):
                for line in lines.splitlines(keepends=True):
                    if line.startswith(b"["):
                        begins.append(at)
                        at += len(line)
                        continue
                    at += len(line)
                    part = typed.read(StreamChunk, dict(plain_json.loads(line)))
                    n = part.end_ticket - self.last.end_ticket
                    self._begins.extend(begins[len(begins) - n :])
                    self.sources.update((source.name, source) for source in part.sources)
                    self.last, self._end, begins = part, at, array("q")
        return self

    def rows(self, ticket: int) -> list[TrainingRow]:
        """Return the rows of a published ticket; DataError if it is damaged or not published."""
        with self._reading(), self._path.open("rb") as file:
            if ticket >= self.last.end_ticket:
                raise ValueError(f"ticket {ticket} is not published")
            file.seek(self._begins[ticket])
            rows = plain_json.loads(file.readline(), strict=False)
            read = [TrainingRow(np.array(ids, np.int32), masked) for masked, *ids in rows]
            for ids, masked in read:
                if type(masked) is not int or not 0 <= masked < len(ids) or min(ids) < 0:
                    raise ValueError(f"a row of ticket {ticket} is impossible")
            return read

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError, LookupError, OverflowError) as error:
            raise DataError(
                f"{self._path} cannot be read: {error}; the stream of this run is damaged; follow "
                "the files again in a new run"
            ) from error


class Closed(Exception):
    """The run has ended, so its stream takes no more chunks."""


class StreamWriter(Stream):
    """Publishes rows and accepts examples, for the holder of the run's lock.

    Raises:
        CheckpointError: the run has accepted examples that may be longer than `seq_len`.
        DataError: a chunk is damaged.
        EnvironmentLacks: the disk is full.
    """

    def __init__(self, run: Path, tokenizer: Tokenizer, *, seq_len: int, batch_size: int) -> None:
        """Open the stream of a run, or create it."""
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self._batch_size, self._closed, self._publishing = batch_size, False, threading.Lock()
        longest = seq_len_of(run)
        if longest is not None and longest > seq_len:
            raise CheckpointError(
                f"the run {run} had seq_len {longest}, and has accepted examples of up to "
                f"{longest} tokens; they may be too long for seq_len {seq_len}; resume with "
                f"--seq-len {longest} or more"
            )
        with disk_errors(f"making {run / FOLDER}"):
            super().__init__(subfolder(run, FOLDER))
        self.update()

    def accept_examples(self) -> None:
        """Let `append_examples` store examples; the run can now be resumed after a kill."""
        path = self.folder / ABOUT
        with disk_errors(f"writing {path}"):
            replace_file(path, plain_json.dumps({"seq_len": self.seq_len}))

    def publish(
        self, rows: Sequence[TrainingRow], sources: Sequence[SourceFile], examples_end: int
    ) -> None:
        """Append a chunk, which workers may train on when this returns.

        Raises:
            Closed: `close` has been called; nothing is published.
            EnvironmentLacks: the disk is full; nothing is published.
        """
        values, size = [[masked, *ids.tolist()] for ids, masked in rows], self._batch_size
        tickets = [plain_json.dumps(values[at : at + size]) for at in range(0, len(values), size)]
        part = StreamChunk(self.last.end_ticket + len(tickets), examples_end, tuple(sources))
        content = b"\n".join([*tickets, plain_json.dumps(asdict(part)), b""])
        with self._publishing:
            if self._closed:
                raise Closed
            append_lines(self._path, content, synced=True, below=self.folder.parent)
            self.update()

    def close(self) -> None:
        """Let no thread publish any more."""
        with self._publishing:
            self._closed = True


class StreamBatches:
    """The batches of a stream, by ticket; the same in every process.

    A chunk is read when its tickets are requested. `byte_lengths` are of each id; `example` is a
    batch of other text, for trials. `frozen` stops gradients at the prompts of examples (`Batch`).
    """

    n_tickets = TICKETS

    def __init__(
        self, folder: Path, byte_lengths: NDArray[np.int64], example: Batch, *, frozen: bool
    ) -> None:
        self._stream, self._byte_lengths, self._example = Stream(folder), byte_lengths, example
        self._frozen = frozen

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket, padded; DataError if it is damaged or not published."""
        g = epoch * TICKETS + ticket
        if g >= self._stream.last.end_ticket:
            self._stream.update()
        rows = self._stream.rows(g)
        x, y = empty_rows(len(rows), max(len(row.ids) for row in rows) - 1)
        for k, (ids, masked) in enumerate(rows):
            n = len(ids) - 1
            x[k, :n], y[k, masked:n] = ids[:-1], ids[masked + 1 :]
        frozen = self._frozen and any(row.masked for row in rows)
        return Batch(x, y, int(self._byte_lengths[y[y != IGNORED]].sum()), seed=g, frozen=frozen)

    def example(self) -> Batch:
        """Return a batch of the usual shape, for a trial of the model."""
        return self._example


# -- text to rows ----------------------------------------------------------------------------------


def document_rows(document: bytes, tokenizer: Tokenizer, seq_len: int) -> Iterator[TrainingRow]:
    """Cut a document into rows, in which each token is a label exactly once."""
    bos = np.array([tokenizer.bos], np.int32)
    ids = np.concatenate([bos, tokenizer.encode(document).astype(np.int32), bos])
    for at in range(0, len(ids) - 1, seq_len):
        yield TrainingRow(ids[at : at + seq_len + 1])


def read_example(record: object, where: str) -> Example:
    """Return the example of a record: `{"prompt": TEXT, "answer": TEXT}`, or `{"messages": [...]}`.

    Raises:
        DataError: a key is missing, unknown or not text, or an answer is empty; the message begins
            with `where`.
    """
    keys = text_keys(record, None)
    example = record_text(record, None, where) if keys else None
    if not isinstance(record, dict) or not isinstance(example, Example):
        raise DataError(f"{where} is {shown(record)}; expected prompt and answer, or messages")
    if unknown := record.keys() - {*keys}:
        raise DataError(f"{where} has a key {shown(min(unknown))}; it has {' and '.join(keys)}")
    return example


def example_rows(
    example: Example, tokenizer: Tokenizer, seq_len: int, where: str
) -> Iterator[TrainingRow]:
    """Yield a row for each answer of an example; the loss is on the answer and its end.

    Later answers of a conversation lose the beginning of a context that is too long.

    Raises:
        DataError: the first row, or an answer, is too long; the message begins with `where`.
    """
    bos = np.array([tokenizer.bos], np.int32)
    before = bos
    for number, turn in enumerate(example.turns()):
        context, answer = (tokenizer.encode(part).astype(np.int32) for part in turn)
        before = np.concatenate([before, context])
        ids = np.concatenate([before, answer, bos])
        cut = max(0, len(ids) - seq_len - 1)
        if cut and (number == 0 or cut >= len(before)):
            raise DataError(
                f"{where} has {len(ids) - 1} tokens, and a row of the run has at most {seq_len} "
                "(seq_len); shorten it, or send it as text"
            )
        yield TrainingRow(ids[cut:], masked=len(before) - 1 - cut)
        before = ids[:-1][-seq_len:]


def append_examples(run: Path, examples: Sequence[object], tokenizer: Tokenizer) -> None:
    """Store examples (`read_example`), which are on the disk when this returns.

    The run trains on each of them once, even if it is killed and resumed meanwhile.

    Raises:
        RunError: the run does not follow a folder.
        DataError: an example is malformed, or too long; none of them is stored.
        EnvironmentLacks: the disk is full; none of them is stored.

    Concurrency: any number of processes may append at once.
    """
    seq_len = seq_len_of(run)
    if seq_len is None:
        raise RunError(
            f"the run {run} takes no examples; start one with: mlxhog train --follow FOLDER"
        )
    lines = []
    for number, example in enumerate(examples, start=1):
        where = f"example {number}"
        line = plain_json.dumps(example)
        try:
            record = plain_json.loads(line)  # as the run will read it
        except ValueError as error:
            raise DataError(f"{where} is refused: {error}") from error
        list(example_rows(read_example(record, where), tokenizer, seq_len, where))
        lines.append(line + b"\n")
    append_lines(run / FOLDER / EXAMPLES, b"".join(lines), synced=True, below=run)


def seq_len_of(run: Path) -> int | None:
    """Return the length of examples that a run accepts; None if it does not follow a folder.

    Raises:
        DataError: its file is damaged.
    """
    path = run / FOLDER / ABOUT
    try:
        return typed.read(_StreamAbout, dict(plain_json.read(path))).seq_len
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: {error}; follow the files again in a new run"
        ) from error
