"""Text that arrives while a run trains: a file of lines in the run's folder that only grows.

    stream/rows.jsonl        a line for each row: [number of its first labels that are not trained,
                             id, id, ...]; then, for some rows together, an object: a `Part`
    stream/stream.json       seq_len: the requirement for examples
    stream/examples.jsonl    examples of `append_examples`; only grows

The line of a part publishes the rows before it, of which it has the number; rows that no part
counts are of a killed process. Tickets are numbered through all parts. Each has the rows of one
batch; the last ticket of a part may have fewer. A published part never changes, so a ticket means
the same rows in every process and after every kill. Parts name their files, so that each file is
read once.

The inputs of a row are all its tokens except the last, its labels all except the first. A document
is BOS, its tokens, BOS, cut into rows of at most seq_len + 1 that overlap by one token. An answer
is one row: BOS, prompt, answer, BOS; its loss is only on the answer and the last BOS.
"""

from __future__ import annotations

import bisect
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, typed
from mlxhog.base.durable import append_lines, disk_errors, read_lines, replace_file
from mlxhog.data import records
from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.data.examples import Example
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, RunError, shown

FOLDER = "stream"
ROWS, EXAMPLES, ABOUT = "rows.jsonl", "examples.jsonl", "stream.json"
WAY_OUT = "the stream of this run is damaged; follow the files again in a new run"
TICKETS = 1024
"""Tickets of an "epoch": a stream has no end, and a ticket is numbered epoch * TICKETS + ticket."""
_BLOCK = 1 << 20


class TrainingRow(NamedTuple):
    """Tokens to train on, (n,) int32 with n >= 2; the first `masked` of their labels are not."""

    ids: NDArray[np.int32]
    masked: int = 0


@dataclass(frozen=True)
class SourceFile:
    """A file that was read: path below the followed folder, size, time, and why it was refused."""

    name: str
    n_bytes: int
    changed_ns: int
    refused: str | None = None


@dataclass(frozen=True)
class Part:
    """Rows that were published together.

    Attributes:
        rows: rows of this part and those before.
        end_ticket: the ticket after its last.
        batch_size: rows of a ticket.
        examples_end: bytes of `examples.jsonl` that are in this part and those before.
        sources: files whose text it has.
    """

    rows: int
    end_ticket: int
    batch_size: int
    examples_end: int
    sources: tuple[SourceFile, ...]


class Stream:
    """The published rows of a folder; `update` reads those that are new.

    Attributes:
        parts: an empty one, then those that are published.
        end: bytes of the file up to the end of the last part.
    """

    def __init__(self, folder: Path) -> None:
        """Begin before the first part."""
        self._path, self._begins = folder / ROWS, array("q")
        self.end, self.parts = 0, [Part(0, 0, 1, 0, ())]

    def update(self) -> Self:
        """Read the new parts.

        Raises:
            DataError: a part is damaged, or the file cannot be read.
        """
        at, begins = self.end, array("q")
        if not at and not self._path.exists():  # nothing is published yet
            return self
        try:
            while lines := read_lines(self._path, at, _BLOCK):
                for line in lines.splitlines(keepends=True):
                    begins.append(at)
                    at += len(line)
                    if line.startswith(b"["):
                        continue
                    part = typed.read(Part, dict(plain_json.loads(line)))
                    own = begins[:-1][len(begins) - 1 - (part.rows - self.parts[-1].rows) :]
                    self._begins.extend(own)
                    self.parts.append(part)
                    self.end, begins = at, array("q")
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self._path} cannot be read: {error}; {WAY_OUT}") from error
        return self

    def rows(self, begin: int, end: int) -> list[TrainingRow]:
        """Return rows begin .. end - 1.

        Raises:
            DataError: one is damaged.
        """
        rows = list[TrainingRow]()
        if begin == end:
            return rows
        try:
            with self._path.open("rb") as file:
                for at in self._begins[begin:end]:
                    file.seek(at)
                    masked, *ids = plain_json.loads(file.readline(), strict=False)
                    rows.append(TrainingRow(np.array(ids, np.int32), masked))
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{self._path} cannot be read: {error}; {WAY_OUT}") from error
        return rows


class Closed(Exception):
    """The stream of a run takes no more parts: the run has ended."""


class StreamWriter:
    """Publishes rows, and lets a run take examples; only the holder of the run's lock has one.

    Attributes:
        last: the last part; an empty one before the first.
        sources: files that are in parts, by name.
    """

    def __init__(self, run: Path, tokenizer: Tokenizer, *, seq_len: int, batch_size: int) -> None:
        """Open the stream of a run, or create it.

        Raises:
            CheckpointError: the run has accepted examples that may be longer than `seq_len`.
            DataError: a part is damaged.
            EnvironmentLacks: the disk is full.
        """
        self.folder, self.tokenizer, self.seq_len = run / FOLDER, tokenizer, seq_len
        self._rows, self._batch_size = self.folder / ROWS, batch_size
        self._closed, self._publishing = False, threading.Lock()
        longest = seq_len_of(run)
        if longest is not None and longest > seq_len:
            raise CheckpointError(
                f"the run {run} had seq_len {longest}, and has accepted examples of up to "
                f"{longest} tokens; they may be too long for seq_len {seq_len}; resume with "
                f"--seq-len {longest} or more"
            )
        with disk_errors(f"making {self.folder}"):
            self.folder.mkdir(exist_ok=True)
        parts = Stream(self.folder).update().parts
        self.last = parts[-1]
        self.sources = {source.name: source for one in parts for source in one.sources}

    def accept_examples(self) -> None:
        """Let `append_examples` store examples; from now on the run can be resumed after a kill."""
        path = self.folder / ABOUT
        with disk_errors(f"writing {path}"):
            replace_file(path, plain_json.dumps({"seq_len": self.seq_len}))

    def publish(
        self, rows: Sequence[TrainingRow], sources: Sequence[SourceFile], examples_end: int
    ) -> None:
        """Append a part; workers may train on it when this returns.

        Raises:
            Closed: `close` has been called; nothing is published.
            EnvironmentLacks: the disk is full; nothing is published.
        """
        part = Part(
            self.last.rows + len(rows),
            self.last.end_ticket - (-len(rows) // self._batch_size),
            self._batch_size,
            examples_end,
            tuple(sources),
        )
        lines = (plain_json.dumps([masked, *ids.tolist()]) for ids, masked in rows)
        with self._publishing:
            if self._closed:
                raise Closed
            content = b"\n".join([*lines, plain_json.dumps(asdict(part)), b""])
            append_lines(self._rows, content, synced=True)
            self.last = part
            self.sources.update((source.name, source) for source in sources)

    def close(self) -> None:
        """Let no more parts be published, also by other threads."""
        with self._publishing:
            self._closed = True


class StreamBatches:
    """The batches of a stream, by ticket; the same in every process.

    Args:
        folder: folder of the stream; its parts are read when their tickets are requested.
        byte_lengths: bytes of text of each id.
        example: a batch of other text, for `example` before the first part.
    """

    n_tickets = TICKETS

    def __init__(self, folder: Path, byte_lengths: NDArray[np.int64], example: Batch) -> None:
        """See the class."""
        self._stream, self._byte_lengths, self._example = Stream(folder), byte_lengths, example

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket, its rows padded to one length.

        Raises:
            DataError: its part is not published, or damaged.
        """
        g, parts = epoch * TICKETS + ticket, self._stream.parts
        if g >= parts[-1].end_ticket:
            self._stream.update()
        k = bisect.bisect_right(parts, g, key=lambda part: part.end_ticket)
        if k == len(parts):
            raise DataError(f"ticket {g} is not published; {WAY_OUT}")
        begin = parts[k - 1].rows + (g - parts[k - 1].end_ticket) * parts[k].batch_size
        rows = self._stream.rows(begin, min(begin + parts[k].batch_size, parts[k].rows))
        x, y = empty_rows(len(rows), max(len(row.ids) for row in rows) - 1)
        for k, (ids, masked) in enumerate(rows):
            n = len(ids) - 1
            x[k, :n], y[k, masked:n] = ids[:-1], ids[masked + 1 :]
        return Batch(x, y, int(self._byte_lengths[y[y != IGNORED]].sum()), seed=g)

    def example(self) -> Batch:
        """A batch of the usual shape, to try a model with."""
        return self._example


# -- text to rows ----------------------------------------------------------------------------------


def document_rows(document: bytes, tokenizer: Tokenizer, seq_len: int) -> Iterator[TrainingRow]:
    """Cut a document into rows; each of its tokens is a label exactly once."""
    bos = np.array([tokenizer.bos], np.int32)
    ids = np.concatenate([bos, tokenizer.encode(document).astype(np.int32), bos])
    for at in range(0, len(ids) - 1, seq_len):
        yield TrainingRow(ids[at : at + seq_len + 1])


def read_example(record: object, where: str) -> Example:
    """Return the example of a record: `{"prompt": TEXT, "answer": TEXT}`, or `{"messages": [...]}`.

    Raises:
        DataError: a part is missing or not text, an answer is empty, or there are other keys; the
            text begins with `where`.
    """
    keys = records.text_keys(record, None)
    example = records.record_text(record, None, where) if keys else None
    if not isinstance(record, dict) or not isinstance(example, Example):
        raise DataError(f"{where} is {shown(record)}; expected prompt and answer, or messages")
    if unknown := record.keys() - {*keys}:
        raise DataError(f"{where} has a key {shown(min(unknown))}; it has {' and '.join(keys)}")
    return example


def example_rows(
    example: Example, tokenizer: Tokenizer, seq_len: int, where: str
) -> Iterator[TrainingRow]:
    """Yield a row for each answer of an example; only the answer and its end are trained.

    Of later answers of a conversation the beginning of the text before is left out if it is too
    long; earlier rows have it.

    Raises:
        DataError: the first row, or an answer, is too long; the text begins with `where`.
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
    """Store examples, as for `read_example`; they are on the disk when this returns.

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
    append_lines(run / FOLDER / EXAMPLES, b"".join(lines), synced=True)


def seq_len_of(run: Path) -> int | None:
    """Return the longest examples that a run accepts; None if it does not follow a folder."""
    path = run / FOLDER / ABOUT
    return int(plain_json.read(path)["seq_len"]) if path.exists() else None
