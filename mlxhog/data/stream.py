"""Text that arrives while a run trains, as rows of tokens for `mlxhog.data.segments`.

    stream/stream.json           format, seq_len, tokenizer_sha256: the requirements for examples
    stream/examples.jsonl        examples of `append_examples`; only grows

The inputs of a row are all its tokens except the last, its labels all except the first. A document
is BOS, its tokens, BOS, cut into rows of at most seq_len + 1 that overlap by one token. An answer
is one row: BOS, prompt, answer, BOS; its loss is only on the answer and the last BOS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mlxhog.base import plain_json
from mlxhog.base.durable import append_lines, disk_errors, replace_file
from mlxhog.data import records
from mlxhog.data.examples import Example
from mlxhog.data.segments import (
    EXAMPLES,
    FOLDER,
    MOST_TICKETS,
    WAY_OUT,
    SegmentWriter,
    TrainingRow,
)
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError, DataError, RunError, shown

FORMAT = 2
ABOUT = "stream.json"
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
        about = plain_json.read(path)
        if about["format"] != FORMAT:
            raise ValueError(f"it is of format {shown(about['format'])}, expected {FORMAT}")
        seq_len = about["seq_len"]
        if type(seq_len) is not int or not 1 <= seq_len < MOST_TICKETS:
            raise ValueError(f"seq_len is {shown(seq_len)}, expected a whole number from 1 to 2^53")
        return seq_len
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}; {WAY_OUT}") from error


class StreamWriter(SegmentWriter):
    """Publishes the segments of a run, and lets it take examples."""

    def __init__(self, run: Path, tokenizer: Tokenizer, *, seq_len: int, batch_size: int) -> None:
        """Open the stream of a run, or create it.

        Raises:
            CheckpointError: the run has accepted examples that may be longer than `seq_len`.
            DataError: a segment is damaged.
            RunError: the description of the stream is damaged.
            EnvironmentLacks: the disk is full.
        """
        self.tokenizer, self.seq_len = tokenizer, seq_len
        longest = seq_len_of(run)
        if longest is not None and longest > seq_len:
            raise CheckpointError(
                f"the run {run} had seq_len {longest}, and has accepted examples of up to "
                f"{longest} tokens; they may be too long for seq_len {seq_len}; resume with "
                f"--seq-len {longest} or more"
            )
        super().__init__(run / FOLDER, batch_size=batch_size)

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
