"""Held-out text: its choice, the same for every run on a corpus, and its evaluation.

every-12th    documents 5, 17, 29, ...
tail          the last 8 % of every document; also for fewer than six documents
volume        in place of every-12th if a document has more than a sixth of the text, or the twelfth
              documents less than a 24th or more than a sixth of it: the last 8 % of each document
              with more than a twelfth of the text (an example is trained), and of the others
              whole ones, a twelfth of their volume
given         files that are held out by their names (`by_name`), or a split of a data set

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
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.data import textfiles
from mlxhog.data.batch import IGNORED, Batch, empty_rows
from mlxhog.data.examples import Example
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks

RULES = ("every-12th", "tail")
SAME = "training examples"
"""The rule for few examples: none is held out, and evaluations are of the training text."""
ROWS = 16  # most sequences in one batch
BATCH_FLOPS = 1e11  # most work in a batch of several sequences; a batch cannot be interrupted
_EVERY, _OFFSET = 12, 5
_TAIL = 0.08


class Sizes(NamedTuple):
    """Sizes of a text.

    Attributes:
        n_documents: number of its documents.
        n_bytes: their bytes.
        longest: bytes of the longest document.
        twelfths: bytes of documents 5, 17, 29, ...
    """

    n_documents: int = 0
    n_bytes: int = 0
    longest: int = 0
    twelfths: int = 0

    def plus(self, document: bytes) -> Sizes:
        """The sizes with one more document."""
        size = len(document)
        return Sizes(
            self.n_documents + 1,
            self.n_bytes + size,
            max(self.longest, size),
            self.twelfths + (self.n_documents % _EVERY == _OFFSET) * size,
        )


def rule_for(val: str, sizes: Sizes) -> str:
    """Return the rule for a text: the requested one, or another where it would hold out badly.

    Raises:
        DataError: `val` is not one of `RULES`.
    """
    if val not in RULES:
        near = difflib.get_close_matches(val, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(RULES)}"
        raise DataError(f"no held-out rule {val!r}; {hint}")
    if val == "tail" or sizes.n_documents <= _OFFSET:
        return "tail"
    n_bytes, twelfths = sizes.n_bytes, sizes.twelfths
    is_even = 6 * sizes.longest <= n_bytes and 6 * twelfths <= n_bytes <= 24 * twelfths
    return val if is_even else "volume"


def split(documents: Iterable[bytes], rule: str, n_bytes: int = 0) -> Iterator[tuple[bool, bytes]]:
    """Yield (held out, text) pieces of the documents, in their order, each byte in one piece.

    Args:
        documents: the whole text.
        rule: as `rule_for` returned it.
        n_bytes: of all documents, for the rule `volume`.
    """
    seen = held_out = 0  # bytes of documents that are held out whole or not at all
    for i, document in enumerate(documents):
        size = len(document)
        is_long = rule == "volume" and _EVERY * size > n_bytes
        if is_long and isinstance(document, Example):
            yield False, document
        elif is_long or rule == "tail":
            end = _cut(document)
            halves = ((False, document[:end]), (True, document[end:]))
            yield from ((held, part) for held, part in halves if part)
        else:
            seen += size
            is_due = _EVERY * held_out + (_OFFSET + 1) * size <= seen  # every 12th of equal ones
            is_held_out = is_due if rule == "volume" else i % _EVERY == _OFFSET
            held_out += is_held_out * size
            yield is_held_out, document


def _cut(document: bytes) -> int:
    """Return where the tail begins: after a space or line end near 92 %, never in a character."""
    end = len(document) - int(_TAIL * len(document))
    spaces = (document.find(space, end, end + 256) for space in (b" ", b"\n"))
    after_space = min((at + 1 for at in spaces if at >= 0), default=end)
    while after_space < len(document) and document[after_space] & 0xC0 == 0x80:
        after_space += 1
    return after_space


_TRAIN = ("train", "training")
_HELD_OUT = "valid validation val dev eval heldout held-out held_out holdout".split()
_TEST = ("test",)
_WORDS = "|".join((*_TRAIN, *_HELD_OUT, *_TEST))
_NUMBER = r"(?:[-_. ]?\d+(?:[-_]of[-_]\d+)?)?"
_WHOLE = re.compile(rf"({_WORDS})(?:(?:[-_ ]?(?:set|data|split))?{_NUMBER}|[-_.].*-\d+-of-\d+)")
_INSIDE = re.compile(rf"(?<![a-z0-9])({'|'.join((*_HELD_OUT, *_TEST))})(?![a-z])")
_SOURCE_CODE = frozenset(
    ".py .pyi .c .h .cc .cpp .hpp .rs .go .js .ts .java .swift .metal .sh .sql .css .toml .yaml "
    ".yml".split()
)
_FEWEST_BYTES = 256  # of held-out files whose names count where no file is named train


class Named(NamedTuple):
    """The files of a folder or a glob by what their names say.

    Attributes:
        train: training text.
        held_out: held-out text; empty if the names say nothing.
        test: text that is neither, because the held-out text has its own files.
        beside: other files beside records of training text.
        unheeded: files that are training text although their names say the contrary.
    """

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()
    unheeded: tuple[Path, ...] = ()


def by_name(files: Sequence[Path], folder: Path) -> Named:
    """Divide files by their names into training, held-out and test text.

    A name counts if, without suffixes and the number of a shard, it is one of the words and not in
    a subfolder, or if the word train in the place of that word makes the name of another file or
    folder: `wiki.valid.tokens` beside `wiki.train.tokens`, `data/dev/` beside `data/train/`.
    Source code is training text with every name.

    The test text is the held-out text if there is no other. Names do not count if no file is named
    train, and the other files have less text than the held-out ones, or these almost none.

    Args:
        files: files with text.
        folder: the folder that the names are relative to.
    """
    words = _words_of(files, folder)
    train, held_out, test = (
        tuple(path for path in files if words.get(path) in group)
        for group in (_TRAIN, _HELD_OUT, _TEST)
    )
    if not held_out:
        held_out, test = test, ()
    not_trained = {*held_out, *test}
    others = tuple(path for path in files if path not in not_trained)
    if held_out and not train:
        size, rest = (
            sum(path.stat().st_size for path in group if path.is_file())
            for group in (held_out, others)
        )
        if not _FEWEST_BYTES <= size <= rest:
            return Named(tuple(files), unheeded=(*held_out, *test))
    records = tuple(filter(_has_records, train))
    trained = set(records or others)
    beside = tuple(path for path in others if path not in trained)
    return Named(records or others, held_out, test, beside)


def _has_records(path: Path) -> bool:
    """Whether a file has records; False for one that cannot be read, which its reader reports."""
    try:
        return bool(textfiles.record_kind(path))
    except (DataError, EnvironmentLacks):
        return False


def _words_of(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    """The word of each file whose name counts; see `by_name`."""
    names_of = {
        path: _names(path, folder) for path in files if textfiles.kind(path) not in _SOURCE_CODE
    }
    known = {names[:end] for names in names_of.values() for end in range(1, len(names) + 1)}
    words, counterparts = dict[Path, str](), set[tuple[str, ...]]()
    for path, names in names_of.items():
        if len(names) == 1 and (whole := _WHOLE.fullmatch(Path(_unpacked(path.name)).stem)):
            words[path] = whole[1]
            continue
        for place, name in enumerate(names):
            for word in _INSIDE.finditer(name):
                for train in _TRAIN:
                    other = name[: word.start()] + train + name[word.end() :]
                    if (*names[:place], other) in known:
                        words[path] = word[1]
                        counterparts.add((*names[:place], other))
    for path, names in names_of.items():
        if any(names[:end] in counterparts for end in range(1, len(names) + 1)):
            words.setdefault(path, _TRAIN[0])
    return words


def _unpacked(name: str) -> str:
    """The name of a file in small letters, without the suffix of its packing."""
    path = Path(name.lower())
    return path.stem if path.suffix in textfiles.PACKED_SUFFIXES else path.name


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    """The names of a path below a folder, without numbers: equal for the shards of one text."""
    parts = path.relative_to(folder).parts
    return tuple(re.sub(r"[-_. ]?\d+(?:[-_]of[-_]\d+)?", "", _unpacked(part)) for part in parts)


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
        chosen = indices[start : start + batch_size].tolist()
        for row, i in enumerate(chosen):
            if table is not None:
                table.fill(file.tokens, file.bos, i, x[row], y[row])
                continue
            tokens = file.tokens[i * seq_len : (i + 1) * seq_len + 1]
            x[row, : len(tokens) - 1] = tokens[:-1]
            y[row, : len(tokens) - 1] = tokens[1:]
        y[y == file.bos] = IGNORED
        yield Batch(x, y, sum(file.row_bytes(seq_len, i) for i in chosen))


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
        n_bytes: sum of the batches' `n_bytes`, > 0: of the text before a tokenizer changed it.
    """
    return nats / (math.log(2) * n_bytes)


MARKS_FILE = "marks.json"
_MOST_BYTES = 1 << 20
UNIFORM = {"uniform": 8.0}
_LEAST = 0.01  # lower bound in bits per byte, for text that only repeats itself
_NAMES = (*UNIFORM, "unigram", "gzip", "xz")


def remembered(
    path: Path, of: object, compute: Callable[[], Any], is_sound: Callable[[Any], bool]
) -> Any:  # of `compute`, as JSON has it
    """Return a value that is computed once and stored in a file, with what it was computed of.

    Args:
        path: the file.
        of: identifies the input, in JSON types; another one is computed anew.
        compute: computes the value.
        is_sound: whether a stored value can be one; it may raise what wrong types raise.
    """
    try:
        record = plain_json.read(path)
        if record["of"] == of and is_sound(record["value"]):
            return record["value"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not computed yet, or damaged
    value = compute()
    with suppress(OSError, EnvironmentLacks):  # another user's directory, or a full disk
        replace_file(path, json.dumps({"of": of, "value": value}, indent=1).encode())
    return value


def marks_of_text(text: bytes, original_bytes: int | None = None) -> dict[str, float]:
    """Return the bits per byte of every simple model on a text.

    Args:
        text: the text as a model sees it.
        original_bytes: number of bytes before the tokenizer changed it; None if it did not.

    >>> marks_of_text(b"never wait, add without a lock. " * 100)
    {'uniform': 8.0, 'unigram': 3.906, 'gzip': 0.19, 'xz': 0.3}
    """
    import lzma  # which a Python may lack, see `textfiles`

    n_bytes = max(len(text), 1)
    shares = np.bincount(np.frombuffer(text, np.uint8)) / n_bytes
    shares = shares[shares > 0]
    bits = {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / n_bytes,
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / n_bytes,
    }
    ratio = 1.0 if original_bytes is None else len(text) / max(original_bytes, 1)
    return UNIFORM | {name: max(_LEAST, round(ratio * n, 3)) for name, n in bits.items()}


def marks_of(val: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the marks of a held-out token file; they are computed at the first call and stored.

    Args:
        val: its `.bin`.
        tokenizer: its tokenizer.

    Raises:
        DataError: the token file is damaged.
    """
    file = TokenFile.open(val)

    def compute() -> dict[str, float]:
        n_bytes = np.cumsum(file.bytes_at(slice(2 * _MOST_BYTES)))  # some tokens have no byte
        end = int(np.searchsorted(n_bytes, _MOST_BYTES)) + 1
        text = tokenizer.decode(np.asarray(file.tokens[:end], np.int32))
        if file.token_bytes is None:
            return marks_of_text(text[:_MOST_BYTES])
        return marks_of_text(text, int(n_bytes[:end][-1]))

    marks: dict[str, float] = remembered(
        val.with_name(MARKS_FILE),
        file.digest,
        compute,
        lambda marks: marks.keys() == set(_NAMES) and min(marks.values()) > 0,
    )
    return marks
