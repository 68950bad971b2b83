"""Text that arrives while a run trains: append-only segments of tokens in the run's directory.

    stream/stream.json           format, seq_len, tokenizer_sha256: what examples have to fit
    stream/00000001.bin          the tokens of segment 1, little endian uint32, row after row
    stream/00000001.rows         (rows, 2) int64: tokens of a row, and its first labels that are not
                                 trained
    stream/00000001.json         the header; a segment is there once this is, by rename
    stream/examples.jsonl        examples that `append_examples` has taken; only grows

A row is trained as it stands: its inputs are all tokens but the last, its labels all but the first.
A document is BOS, its tokens, BOS, cut into rows of at most seq_len + 1 that overlap by a token. An
example is one row: BOS, prompt, answer, BOS, and its loss is on the answer and that BOS alone.

Tickets count through all segments: segment k has `tickets` of them from `first_ticket` on, each of
`batch_size` rows but the last, which ends with the segment. A published segment never changes, so a
ticket means the same rows in every process and after every kill; which are done, the run's ledger
and its checkpoints know. Segments say which files they come from, so that each is taken once.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import DataError, RunError, shown
from mlxhog.files import plain_json
from mlxhog.files.durable import (
    append_lines,
    disk_errors,
    replace_file,
    write_synced,
)

FORMAT = 1
FOLDER = "stream"
EXAMPLES = "examples.jsonl"
TICKETS = 1024
"""Tickets of an "epoch": a stream has no end, and a ticket is numbered epoch * TICKETS + ticket."""
_MAPPED = 8  # segments in one process
_WAY_OUT = "the stream of this run is damaged; follow the files again in a new run"


@dataclass(frozen=True)
class Row:
    """One sequence to train on.

    Attributes:
        ids: its tokens, (n,) int32, at least 2.
        masked: its first labels that are not trained, below n - 1.
    """

    ids: NDArray[np.int32]
    masked: int = 0


@dataclass(frozen=True)
class Source:
    """A file that a segment has taken, or refused.

    Attributes:
        name: path below the folder that is followed.
        n_bytes: its size then.
        changed_ns: its modification time then.
        refused: why nothing of it is trained; None where all of it is.
    """

    name: str
    n_bytes: int
    changed_ns: int
    refused: str | None = None


def document_rows(document: bytes, tokenizer: Tokenizer, seq_len: int) -> list[Row]:
    """Cut a document into rows that hold each of its tokens as a label once."""
    bos = np.array([tokenizer.bos], np.int32)
    ids = np.concatenate([bos, tokenizer.encode(document).astype(np.int32), bos])
    return [Row(ids[at : at + seq_len + 1]) for at in range(0, len(ids) - 1, seq_len)]


def example_row(record: Mapping[str, Any], tokenizer: Tokenizer, seq_len: int, where: str) -> Row:
    """Return the row of an example, `{"prompt": TEXT, "answer": TEXT}`.

    Args:
        record: the example.
        tokenizer: makes its tokens.
        seq_len: the longest row's inputs.
        where: names it in errors.

    Raises:
        DataError: a part is missing or no text, the answer is empty, or it is too long.
    """
    unknown = set(record) - {"prompt", "answer"}
    if unknown:
        raise DataError(f"{where} has a key {shown(min(unknown))}; it has prompt and answer")
    for key in ("prompt", "answer"):
        if not isinstance(record.get(key), str):
            raise DataError(f"{where}: {key} is {shown(record.get(key))}, expected text")
    if not record["answer"]:
        raise DataError(f"{where}: the answer is empty, so there is nothing to train on")
    try:
        prompt, answer = (record[key].encode() for key in ("prompt", "answer"))
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character (a lone surrogate): {error}") from error
    return answer_row(prompt, answer, tokenizer, seq_len, where)


def answer_row(prompt: bytes, answer: bytes, tokenizer: Tokenizer, seq_len: int, where: str) -> Row:
    """Return the row of a prompt and its answer, which alone is trained.

    Raises:
        DataError: it is too long.
    """
    context, rest = (tokenizer.encode(part).astype(np.int32) for part in (prompt, answer))
    bos = np.array([tokenizer.bos], np.int32)
    ids = np.concatenate([bos, context, rest, bos])
    if len(ids) > seq_len + 1:
        raise DataError(
            f"{where} has {len(ids) - 1} tokens, the run trains on at most {seq_len} at a time "
            "(seq_len); shorten it, or send it as text"
        )
    return Row(ids, masked=len(context))


def append_examples(run: Path, examples: Sequence[object], tokenizer: Tokenizer) -> None:
    """Keep examples for a run that follows; they are on the disk when this returns.

    The run trains on them once, also where it is killed meanwhile, as soon as it trains.

    Args:
        run: the run's directory.
        examples: each `{"prompt": TEXT, "answer": TEXT}`.
        tokenizer: of the run's model.

    Raises:
        RunError: the run does not follow anything.
        DataError: an example is empty, too long, or not text; none of them is kept.
        EnvironmentLacks: the disk is full; none is kept.

    Concurrency: any number of processes may append at once.
    """
    folder = run / FOLDER
    try:
        about = plain_json.read(folder / "stream.json")
        seq_len = int(about["seq_len"])
    except FileNotFoundError as error:
        raise RunError(
            f"the run {run} takes no examples; start one with: mlxhog train --follow FOLDER"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{folder / 'stream.json'} cannot be read: {error}; {_WAY_OUT}") from error
    for number, example in enumerate(examples, start=1):
        where = f"example {number}"
        if not isinstance(example, Mapping):
            raise DataError(
                f"{where} is {shown(example)}; expected an object with prompt and answer"
            )
        example_row(example, tokenizer, seq_len, where)
    lines = b"".join(plain_json.dumps(example) + b"\n" for example in examples)
    append_lines(folder / EXAMPLES, lines, synced=True)


@dataclass(frozen=True)
class Segment:
    """A published segment; see the module for the files."""

    number: int
    first_ticket: int
    tickets: int
    batch_size: int
    sources: tuple[Source, ...]
    examples_end: int
    tokens: NDArray[np.uint32]
    rows: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, number: int, *, verify: bool = False) -> Segment | None:
        """Return a segment; None where it is not published.

        Args:
            folder: of the stream.
            number: of the segment, from 1.
            verify: whether its digest is compared, which reads all of it.

        Raises:
            DataError: it is damaged.
        """
        path = folder / f"{number:08}.json"
        try:
            header = plain_json.read(path)
            sizes = header["tokens"], header["rows"]
            tokens = _map(path.with_suffix(".bin"), "<u4")
            rows = _map(path.with_suffix(".rows"), "<i8").reshape(-1, 2)
            if (len(tokens), len(rows)) != sizes or header["format"] != FORMAT:
                raise ValueError(f"it holds {len(tokens)} tokens in {len(rows)} rows, not {sizes}")
            if verify and _digest(tokens, rows) != header["sha256"]:
                raise ValueError("its tokens have another digest than its header says")
            return cls(
                number=number,
                first_ticket=int(header["first_ticket"]),
                tickets=-(-len(rows) // int(header["batch_size"])),
                batch_size=int(header["batch_size"]),
                sources=tuple(Source(**source) for source in header["sources"]),
                examples_end=int(header["examples_end"]),
                tokens=tokens,
                rows=rows,
            )
        except FileNotFoundError as error:
            if not path.exists():
                return None
            raise DataError(f"{path} lacks {error.filename}; {_WAY_OUT}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {error}; {_WAY_OUT}") from error

    @property
    def end_ticket(self) -> int:
        """The ticket behind its last."""
        return self.first_ticket + self.tickets

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each row ends among the tokens."""
        return np.cumsum(self.rows[:, 0])

    def batch(self, ticket: int, byte_lengths: NDArray[np.int64]) -> Batch:
        """Return the rows of one of its tickets, filled up to one length.

        Raises:
            DataError: a token is outside the vocabulary.
        """
        begin = (ticket - self.first_ticket) * self.batch_size
        chosen = self.rows[begin : begin + self.batch_size]
        ends = self._ends[begin : begin + self.batch_size]
        x, y = empty_rows(len(chosen), int(chosen[:, 0].max() - 1))
        for row, (end, (n, masked)) in enumerate(zip(ends, chosen, strict=True)):
            ids = self.tokens[end - n : end].astype(np.int64)
            if ids.max() >= len(byte_lengths):
                raise DataError(f"segment {self.number} has ids outside the vocabulary; {_WAY_OUT}")
            x[row, : n - 1], y[row, masked : n - 1] = ids[:-1], ids[masked + 1 :]
        counted = y[y != IGNORED]
        return Batch(x, y, int(byte_lengths[counted].sum()), seed=ticket)


class StreamWriter:
    """Publishes segments; there is one, the holder of the run's lock.

    Attributes:
        end: tickets that are published.
        examples_end: bytes of `examples.jsonl` that segments have taken.
        sources: what segments have taken, by name.
    """

    def __init__(self, run: Path, tokenizer: Tokenizer, *, seq_len: int, batch_size: int) -> None:
        """Open the stream of a run, or begin one.

        Raises:
            DataError: a segment is damaged.
            EnvironmentLacks: the disk is full.
        """
        self.folder, self.tokenizer, self.seq_len = run / FOLDER, tokenizer, seq_len
        self._batch_size, self._segments = batch_size, 0
        self.end = self.examples_end = 0
        self.sources: dict[str, Source] = {}
        with disk_errors(f"making {self.folder}"):
            self.folder.mkdir(exist_ok=True)
        while segment := Segment.read(self.folder, self._segments + 1, verify=True):
            self._take(segment)

    def accept_examples(self) -> None:
        """Let `append_examples` keep examples: from now on the run can be resumed after any kill.

        Raises:
            EnvironmentLacks: the disk is full.
        """
        digest = self.tokenizer.sha256
        about = {"format": FORMAT, "seq_len": self.seq_len, "tokenizer_sha256": digest}
        path = self.folder / "stream.json"
        with disk_errors(f"writing {path}"):
            replace_file(path, plain_json.dumps(about))

    def publish(self, rows: Sequence[Row], sources: Sequence[Source], examples_end: int) -> None:
        """Append a segment; workers may train on it when this returns.

        Raises:
            EnvironmentLacks: the disk is full; nothing is published.
        """
        number = self._segments + 1
        path = self.folder / f"{number:08}.json"
        tokens = np.concatenate([np.empty(0, "<u4"), *(row.ids.astype("<u4") for row in rows)])
        table = np.array([(len(row.ids), row.masked) for row in rows], "<i8").reshape(-1, 2)
        header = {
            "format": FORMAT,
            "first_ticket": self.end,
            "batch_size": self._batch_size,
            "tokens": len(tokens),
            "rows": len(table),
            "sources": [vars(source) for source in sources],
            "examples_end": examples_end,
            "sha256": _digest(tokens, table),
        }
        with disk_errors(f"writing {path}"):
            write_synced(path.with_suffix(".bin"), tokens.tobytes())
            write_synced(path.with_suffix(".rows"), table.tobytes())
            replace_file(path, plain_json.dumps(header))
        segment = Segment.read(self.folder, number)
        assert segment is not None
        self._take(segment)

    def _take(self, segment: Segment) -> None:
        if segment.first_ticket != self.end:
            raise DataError(
                f"segment {segment.number} begins with ticket {segment.first_ticket}, expected "
                f"{self.end}; {_WAY_OUT}"
            )
        self._segments, self.end = segment.number, segment.end_ticket
        self.examples_end = segment.examples_end
        self.sources.update((source.name, source) for source in segment.sources)


class StreamBatches:
    """The batches of a stream, by ticket; the same in every process."""

    n_tickets = TICKETS

    def __init__(self, folder: Path, byte_lengths: NDArray[np.int64], example: Batch) -> None:
        """Read the segments of a folder, as they are asked for.

        Args:
            folder: of the stream.
            byte_lengths: bytes of text of each id.
            example: a batch of other text, for who wants one before anything has come.
        """
        self._folder, self._byte_lengths, self._example = folder, byte_lengths, example
        self._ends: list[int] = []  # of every segment, its last ticket + 1
        self._open: dict[int, Segment] = {}

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket.

        Raises:
            DataError: it is not published, or damaged.
        """
        g = epoch * TICKETS + ticket
        while not self._ends or g >= self._ends[-1]:
            self._ends.append(self._segment(len(self._ends) + 1).end_ticket)
        # A segment of nothing but refused files has no ticket, and is passed over.
        number = 1 + bisect.bisect_right(self._ends, g)
        return self._segment(number).batch(g, self._byte_lengths)

    def _segment(self, number: int) -> Segment:
        """A segment; few are kept mapped."""
        if number not in self._open:
            segment = Segment.read(self._folder, number)
            if segment is None:
                raise DataError(f"segment {number} of {self._folder} is not published")
            if len(self._open) >= _MAPPED:
                self._open.pop(next(iter(self._open)))
            self._open[number] = segment
        return self._open[number]

    def example(self) -> Batch:
        """A batch of the same shape as many, to try a model with."""
        return self._example


def _map(path: Path, dtype: str) -> NDArray[Any]:
    """A file as an array, which is not read before it is looked at."""
    if not path.stat().st_size:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _digest(tokens: NDArray[np.uint32], rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(tokens.tobytes() + rows.tobytes()).hexdigest()
