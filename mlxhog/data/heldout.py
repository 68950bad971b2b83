"""Held-out text: its choice, the same for every run on a corpus, and its evaluation.

every-12th    documents 5, 17, 29, ...; a corpus of fewer than six documents uses `tail` instead
tail          the last 8 % of every document

Every evaluation uses the same sequences, in the same order, in batches of the same shape.

Marks make bits per byte comparable: the scores of simple models on the first MiB of held-out text,
each fitted to this text only:

    uniform     8, for every text
    unigram     the entropy of single bytes
    gzip        `gzip -9`
    xz          `xz -9e`

They are stored in `marks.json` beside the token file, with its digest.
"""

from __future__ import annotations

import difflib
import gzip
import json
import lzma
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file

RULES = ("every-12th", "tail")
SAME = "training examples"
"""The rule for few examples: none is held out, and evaluations are of the training text."""
ROWS = 16  # most sequences in one batch
BATCH_FLOPS = 1e11  # most work in a batch of several sequences; a batch cannot be interrupted
_EVERY, _OFFSET = 12, 5
_TAIL = 0.08


def rule_for(val: str, n_documents: int) -> str:
    """Return the rule for a corpus of `n_documents`; `every-12th` becomes `tail` for few.

    Raises:
        DataError: `val` is not one of `RULES`.
    """
    if val not in RULES:
        near = difflib.get_close_matches(val, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(RULES)}"
        raise DataError(f"no held-out rule {val!r}; {hint}")
    return "tail" if n_documents <= _OFFSET else val


def split(documents: Iterable[bytes], rule: str) -> Iterator[tuple[bool, bytes]]:
    """Yield (held out, text) pieces of the documents, in their order, each byte in one piece."""
    for i, document in enumerate(documents):
        if rule == "tail":
            end = _cut(document)
            yield from ((held, part) for held, part in _halves(document, end) if part)
        else:
            yield i % _EVERY == _OFFSET, document


def _halves(document: bytes, end: int) -> tuple[tuple[bool, bytes], tuple[bool, bytes]]:
    return (False, document[:end]), (True, document[end:])


def _cut(document: bytes) -> int:
    """Return where the tail begins: after a space or line end near 92 %, never in a character."""
    end = len(document) - int(_TAIL * len(document))
    spaces = (document.find(space, end, end + 256) for space in (b" ", b"\n"))
    after_space = min((at + 1 for at in spaces if at >= 0), default=end)
    while after_space < len(document) and document[after_space] & 0xC0 == 0x80:
        after_space += 1
    return after_space


def rows_of_batch(parameters: int, seq_len: int) -> int:
    """Return the number of sequences in a batch of an evaluation, for a model of this size."""
    rows = ROWS
    while rows > 1 and 2.0 * parameters * seq_len * rows > BATCH_FLOPS:
        rows //= 2
    return rows


def n_batches(
    file: TokenFile, *, seq_len: int, batch_size: int, eval_tokens: int | None = None
) -> int:
    """Return the number of batches that `batches` yields."""
    return -(-len(_chosen(file, seq_len, eval_tokens)) // batch_size)


def batches(
    file: TokenFile,
    *,
    seq_len: int,
    batch_size: int,
    eval_tokens: int | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Batch]:
    """Yield the held-out text as batches of exactly (batch_size, seq_len).

    Document separators have the label `IGNORED`, and so has the padding of the last sequence and
    the last batch. Over the whole file the sum of the batches' `n_bytes` is that of the text. In a
    file with examples only completions are counted, the rows are those of `ExampleRows`, and all
    batches are as wide as the longest row.

    Args:
        file: the held-out token file.
        seq_len: length of a sequence.
        batch_size: rows of every batch.
        eval_tokens: number of labels to use, rounded up to whole sequences, spread evenly over the
            file; None is the whole file. Labels of prompts are included.
        first: number of batches to skip.
        count: number of batches to yield; None is all that follow.
    """
    indices = _chosen(file, seq_len, eval_tokens)
    stop = len(indices) if count is None else min(len(indices), (first + count) * batch_size)
    table = file.rows(seq_len)
    width = seq_len if table is None else empty_rows(1, int(table.length.max()))[0].shape[1]
    for start in range(first * batch_size, stop, batch_size):
        x = np.full((batch_size, width), file.bos, np.int32)
        y = np.full((batch_size, width), IGNORED, np.int32)
        for row, i in enumerate(indices[start : start + batch_size].tolist()):
            if table is not None:
                table.fill(file.tokens, file.bos, i, x[row], y[row])
                continue
            tokens = file.tokens[i * seq_len : (i + 1) * seq_len + 1]
            x[row, : len(tokens) - 1] = tokens[:-1]
            y[row, : len(tokens) - 1] = tokens[1:]
        y[y == file.bos] = IGNORED
        yield Batch(x, y, int(file.byte_lengths[y[y != IGNORED]].sum()))


def _chosen(file: TokenFile, seq_len: int, eval_tokens: int | None) -> NDArray[np.int64]:
    """The sequences to evaluate; the last may be shorter than seq_len."""
    table, length = file.rows(seq_len), float(seq_len)
    total = -(-(file.n_tokens - 1) // seq_len)
    if table is not None:
        total, length = len(table), float(table.length.mean())
    n = total if eval_tokens is None else min(total, max(1, math.ceil(eval_tokens / length)))
    return np.arange(n, dtype=np.int64) * total // n


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return the summed cross entropy of the text's labels in bits per byte of text.

    Unlike the loss per token, it can be compared between tokenizers.

    Args:
        nats: sum over the labels that `batches` counts, in nats.
        n_bytes: sum of the batches' `n_bytes`, > 0.
    """
    return nats / (math.log(2) * n_bytes)


MARKS_FILE = "marks.json"
_MOST_BYTES = 1 << 20
UNIFORM = {"uniform": 8.0}
_LEAST = 0.01  # lower bound in bits per byte, for text that only repeats itself
_NAMES = ("unigram", "gzip", "xz")


def marks_of_text(text: bytes) -> dict[str, float]:
    """Return the bits per byte of every simple model on a text.

    >>> marks_of_text(b"never wait, add without a lock. " * 100)
    {'uniform': 8.0, 'unigram': 3.906, 'gzip': 0.19, 'xz': 0.3}
    """
    n_bytes = max(len(text), 1)
    shares = np.bincount(np.frombuffer(text, np.uint8)) / n_bytes
    shares = shares[shares > 0]
    bits = {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / n_bytes,
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / n_bytes,
    }
    return UNIFORM | {name: max(_LEAST, round(value, 3)) for name, value in bits.items()}


def marks_of(val: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the marks of a held-out token file; they are computed at the first call and stored.

    Args:
        val: its `.bin`.
        tokenizer: its tokenizer.

    Raises:
        DataError: the token file is damaged.
    """
    file, memory = TokenFile.open(val), val.with_name(MARKS_FILE)
    remembered = _remembered(memory, file.digest)
    if remembered is not None:
        return remembered
    tokens = np.asarray(file.tokens[: 2 * _MOST_BYTES], np.int32)  # some tokens have no byte
    n_bytes = np.cumsum(file.byte_lengths[tokens])
    end = int(np.searchsorted(n_bytes, _MOST_BYTES)) + 1
    marks = marks_of_text(tokenizer.decode(tokens[:end])[:_MOST_BYTES])
    content = json.dumps({"sha256": file.digest, "bits_per_byte": marks}, indent=1)
    try:
        replace_file(memory, content.encode())
    except (OSError, EnvironmentLacks):
        pass  # another user's directory, or a full disk: the next call computes them again
    return marks


def _remembered(memory: Path, digest: str) -> dict[str, float] | None:
    """Return the marks of this text from `marks.json`; None if it has no valid marks of it."""
    try:
        record = plain_json.read(memory)
        if record["sha256"] != digest:
            return None
        marks = {name: float(record["bits_per_byte"][name]) for name in record["bits_per_byte"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(math.isfinite(bits) and bits > 0 for bits in marks.values())
    return marks if sound and marks.keys() == {*UNIFORM, *_NAMES} else None
