"""Text that arrives while a run trains: append-only segments of tokens in the run's directory.

    stream/stream.json           format, seq_len, tokenizer_sha256: the requirements for examples
    stream/00000001.*            a segment, see `mlxhog.data.segments`
    stream/examples.jsonl        examples of `append_examples`; only grows

The inputs of a row are all its tokens except the last, its labels all except the first. A document
is BOS, its tokens, BOS, cut into rows of at most seq_len + 1 that overlap by one token. An answer
is one row: BOS, prompt, answer, BOS; its loss is only on the answer and the last BOS.

A published segment never changes, so a ticket means the same rows in every process and after every
kill. The run's ledger and its checkpoints record the finished tickets. Segments name their files,
so that each file is read once.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.data import drafts, records, segments
from mlxhog.data.batch import Batch
from mlxhog.data.drafts import Draft
from mlxhog.data.examples import Example
from mlxhog.data.segments import (
    FORMAT,
    MOST_TICKETS,
    WAY_OUT,
    SourceFile,
    StreamSegment,
    TrainingRow,
)
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, RunError, shown
from mlxhog.files import plain_json
from mlxhog.files.durable import append_lines, disk_errors, replace_file

FOLDER = "stream"
ABOUT = "stream.json"
EXAMPLES = "examples.jsonl"
TICKETS = 1024
"""Tickets of an "epoch": a stream has no end, and a ticket is numbered epoch * TICKETS + ticket."""
_MAPPED = 8  # most segments that a process has mapped
PIECE_BYTES = 1 << 20
"""Bytes of a document that are tokenized at once."""


def document_rows(document: bytes, tokenizer: Tokenizer, seq_len: int) -> Iterator[TrainingRow]:
    """Cut a document into rows; each of its tokens is a label exactly once.

    A long document is tokenized in pieces, so that memory holds little more than its text.
    """
    bos = np.array([tokenizer.bos], np.int32)
    rest = bos
    for piece in _pieces(document):
        rest = np.concatenate([rest, tokenizer.encode(piece).astype(np.int32)])
        whole = (len(rest) - 1) // seq_len * seq_len
        for at in range(0, whole, seq_len):
            yield TrainingRow(rest[at : at + seq_len + 1])
        rest = rest[whole:]
    yield TrainingRow(np.concatenate([rest, bos]))


def _pieces(document: bytes) -> Iterator[bytes]:
    """Cut a text that is too long for a tokenizer, after a line or a word if possible."""
    begin = 0
    while len(document) - begin > PIECE_BYTES:
        limit = begin + PIECE_BYTES
        marks = (document.rfind(mark, begin, limit) + 1 for mark in (b"\n", b" "))
        end = next((mark for mark in marks if mark > begin), 0)
        if not end:
            amid = (document[limit - k] & 0xC0 == 0x80 for k in range(3))  # within a character
            end = limit - next((k for k, is_amid in enumerate(amid) if not is_amid), 0)
        yield document[begin:end]
        begin = end
    yield document[begin:]


def read_example(record: object, where: str) -> Example:
    """Return the example of a record: `{"prompt": TEXT, "answer": TEXT}`, or `{"messages": [...]}`.

    Args:
        record: a JSON value.
        where: name of the example in errors.

    Raises:
        DataError: a part is missing or not text, an answer is empty, or there are other keys.
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

    Args:
        example: the example.
        tokenizer: the tokenizer of the run.
        seq_len: most inputs of a row.
        where: name of the example in errors.

    Raises:
        DataError: the first row, or an answer, is too long.
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
    """Store examples for a run that follows a folder; they are on the disk when this returns.

    The run trains on each of them once, even if it is killed and resumed meanwhile.

    Args:
        run: the run's directory.
        examples: each as for `read_example`.
        tokenizer: the tokenizer of the run's model.

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
    """Return the longest examples that a run accepts; None if it does not follow a folder.

    Raises:
        RunError: the description of its stream is damaged.
    """
    path = run / FOLDER / ABOUT
    try:
        seq_len = plain_json.read(path)["seq_len"]
        if type(seq_len) is not int or not 1 <= seq_len < MOST_TICKETS:
            raise ValueError(f"seq_len is {shown(seq_len)}, expected a whole number from 1 to 2^53")
        return seq_len
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}; {WAY_OUT}") from error


class StreamWriter:
    """Publishes segments; only the holder of the run's lock may have one.

    Attributes:
        end: number of published tickets.
        examples_end: bytes of `examples.jsonl` that are in segments.
        sources: files that are in segments, by name.
    """

    def __init__(self, run: Path, tokenizer: Tokenizer, *, seq_len: int, batch_size: int) -> None:
        """Open the stream of a run, or create it; many small segments are merged.

        Raises:
            CheckpointError: the run has accepted examples that may be longer than `seq_len`.
            DataError: a segment is damaged.
            RunError: the description of the stream is damaged.
            EnvironmentLacks: the disk is full.
        """
        self.folder, self.tokenizer, self.seq_len = run / FOLDER, tokenizer, seq_len
        self._batch_size, self._segments = batch_size, 0
        self._closed, self._publishing = False, threading.Lock()
        self.end = self.examples_end = 0
        self.sources: dict[str, SourceFile] = {}
        with disk_errors(f"making {self.folder}"):
            self.folder.mkdir(exist_ok=True)
        self._check_seq_len(run)
        with disk_errors(f"reading {self.folder}"):
            drafts.sweep(self.folder)
            known = segments.read_all(self.folder, verify=True)
            for segment in drafts.merge(self.folder, known):
                self._take(segment)
        examples = self.folder / EXAMPLES
        size = examples.stat().st_size if examples.exists() else 0
        if size < self.examples_end:
            raise DataError(
                f"{examples} has {size} bytes, but {self.examples_end} of them are in segments; "
                f"{WAY_OUT}"
            )

    def _check_seq_len(self, run: Path) -> None:
        """Refuse a `seq_len` for which accepted examples may be too long."""
        longest = seq_len_of(run)
        if longest is not None and longest > self.seq_len:
            raise CheckpointError(
                f"the run {run} had seq_len {longest}, and has accepted examples of up to "
                f"{longest} tokens; they may be too long for seq_len {self.seq_len}; resume with "
                f"--seq-len {longest} or more"
            )

    def accept_examples(self) -> None:
        """Let `append_examples` store examples; from now on the run can be resumed after a kill.

        Raises:
            EnvironmentLacks: the disk is full.
        """
        digest = self.tokenizer.sha256
        about = {"format": FORMAT, "seq_len": self.seq_len, "tokenizer_sha256": digest}
        path = self.folder / ABOUT
        with disk_errors(f"writing {path}"):
            replace_file(path, plain_json.dumps(about))

    def draft(self) -> Draft:
        """Begin the next segment; its rows become visible with `publish`."""
        return Draft(segments.header_path(self.folder, self._segments + 1))

    def publish(self, draft: Draft, sources: Sequence[SourceFile], examples_end: int) -> None:
        """Append a segment; workers may train on it when this returns.

        Raises:
            Closed: `close` has been called; nothing is published.
            DataError: the segment cannot be read back as it was written; nothing is published.
            EnvironmentLacks: the disk is full; nothing is published.
        """
        with disk_errors(f"writing {draft.path}"):
            draft.seal(
                {
                    "first_ticket": self.end,
                    "batch_size": self._batch_size,
                    "sources": [vars(source) for source in sources],
                    "examples_end": examples_end,
                }
            )
            with self._publishing:
                if self._closed:
                    raise Closed
                self._take(draft.publish())

    def close(self) -> None:
        """Let no more segments be published, also by other threads."""
        with self._publishing:
            self._closed = True

    def _take(self, segment: StreamSegment) -> None:
        if segment.first_ticket != self.end:
            raise DataError(
                f"{segment.path} begins with ticket {segment.first_ticket}, expected {self.end}; "
                f"{WAY_OUT}"
            )
        self._segments, self.end = segment.last, segment.end_ticket
        self.examples_end = segment.examples_end
        self.sources.update((source.name, source) for source in segment.sources)


class Closed(Exception):
    """The stream of a run takes no more segments: the run has ended."""


class StreamBatches:
    """The batches of a stream, by ticket; the same in every process."""

    n_tickets = TICKETS

    def __init__(self, folder: Path, byte_lengths: NDArray[np.int64], example: Batch) -> None:
        """Read the segments of a folder when their tickets are requested.

        Args:
            folder: folder of the stream.
            byte_lengths: bytes of text of each id.
            example: a batch of other text, for `example` before the first segment.
        """
        self._folder, self._byte_lengths, self._example = folder, byte_lengths, example
        self._headers: list[Path] | None = None
        self._firsts: dict[Path, int] = {}
        self._open: dict[Path, StreamSegment] = {}

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket.

        Raises:
            DataError: its segment is not published, or damaged.
        """
        g = epoch * TICKETS + ticket
        for segment in self._open.values():
            if segment.first_ticket <= g < segment.end_ticket:
                return segment.batch(g, self._byte_lengths)
        return self._find(g).batch(g, self._byte_lengths)

    def _find(self, g: int) -> StreamSegment:
        """The segment of a ticket, by binary search over the headers."""
        try:
            if self._headers is None:
                self._headers = segments.headers(self._folder)
            last = int(self._headers[-1].stem[-8:]) if self._headers else 0
            while (path := segments.header_path(self._folder, last + 1)).exists():
                self._headers.append(path)
                last += 1
        except OSError as error:
            raise DataError(f"{self._folder} cannot be read: {error}; {WAY_OUT}") from error
        # A segment with refused files only has no ticket; it is skipped.
        number = bisect.bisect_right(self._headers, g, key=self._first_ticket) - 1
        if number >= 0:
            segment = self._segment(self._headers[number])
            if g < segment.end_ticket:
                return segment
        raise DataError(f"ticket {g} of {self._folder} is not published")

    def _first_ticket(self, path: Path) -> int:
        if path not in self._firsts:
            self._firsts[path] = self._segment(path).first_ticket
        return self._firsts[path]

    def _segment(self, path: Path) -> StreamSegment:
        """The segment of a header; a few segments stay mapped."""
        if path not in self._open:
            segment = StreamSegment.read(path)
            if len(self._open) >= _MAPPED:
                self._open.pop(next(iter(self._open)))
            self._open[path] = segment
        return self._open[path]

    def example(self) -> Batch:
        """A batch of the usual shape, to try a model with."""
        return self._example
