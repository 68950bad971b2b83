"""Held-out text: its choice, the same for every run on a corpus, and its evaluation.

every-12th    documents 5, 17, 29, ...
tail          the last 8 % of every document; also for fewer than six documents
volume        in place of every-12th if a document has more than a sixth of the text, or the twelfth
              documents less than a 24th or more than a sixth of it: the last 8 % of each document
              with more than a twelfth of the text (an example is trained), and of the others
              whole ones, a twelfth of their volume
given         files that are held out by their names (`by_name`), or a split of a data set

Every evaluation uses the same sequences, in the same order, in batches of the same shape. Marks
make bits per byte comparable: the scores of simple models (uniform, the entropy of single bytes,
`gzip -9`, `xz -9e`) on the first MiB of held-out text, each fitted to this text only.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.data import textfiles
from mlxhog.data.batch import IGNORED, Batch, padded
from mlxhog.data.records import Example
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks, did_you_mean

RULES = ("every-12th", "tail")
SAME = "training examples"
"""The rule for few examples: none is held out, and evaluations are of the training text."""
ROWS = 16  # most sequences in one batch
BATCH_FLOPS = 1e11  # most work in a batch of several sequences; a batch cannot be interrupted
MARKED_BYTES = 1 << 20
_EVERY, _OFFSET = 12, 5
_SAMPLE_BYTES = 65_536
_TAIL = 0.08


@dataclass
class Scan:
    """Counts of the documents of a text, in their order."""

    n_documents: int = 0
    n_bytes: int = 0
    longest: int = 0  # bytes of the longest document
    twelfths: int = 0  # bytes of documents 5, 17, 29, ...
    n_examples: int = 0
    n_given: int = 0  # documents of the corpus's own held-out text
    given_bytes: int = 0
    sample: bytes = b""  # the begin of the text
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, document: bytes, *, held_out: bool = False) -> None:
        """Count one more document; `held_out` says whether it is the corpus's own held-out text."""
        size = len(document)
        if isinstance(document, Example):
            self.n_examples += 1
            lengths = " ".join(map(str, document.lengths[:-1]))
            self._digest.update(f"\0prompt {lengths}\0".encode())
        self._digest.update(b"\0" * (self.n_documents > 0))
        self._digest.update(document)
        self.twelfths += (self.n_documents % _EVERY == _OFFSET) * size
        self.n_documents += 1
        self.n_bytes += size
        self.longest = max(self.longest, size)
        self.n_given += held_out
        self.given_bytes += held_out * size
        if len(self.sample) < _SAMPLE_BYTES:
            self.sample += document[:_SAMPLE_BYTES]

    def copy(self) -> Scan:
        """Return a scan to count more documents with."""
        return replace(self, _digest=self._digest.copy())

    @property
    def sha256(self) -> str:
        """Digest of the documents, joined by a zero byte; those of examples have their lengths."""
        return str(self._digest.hexdigest())


def rule_for(val: str, scan: Scan) -> str:
    """Return the rule for a text: the requested one, or another where it would hold out badly.

    Raises:
        DataError: `val` is not one of `RULES`.
    """
    if val not in RULES:
        raise DataError(
            f"no held-out rule {val!r}; expected one of {', '.join(RULES)}"
            + did_you_mean(val, RULES)
        )
    if val == "tail" or scan.n_documents <= _OFFSET:
        return "tail"
    n_bytes, twelfths = scan.n_bytes, scan.twelfths
    is_even = 6 * scan.longest <= n_bytes and 6 * twelfths <= n_bytes <= 24 * twelfths
    return val if is_even else "volume"


def split(documents: Iterable[bytes], rule: str, n_bytes: int = 0) -> Iterator[tuple[bool, bytes]]:
    """Yield (held out, text) pieces of the documents, in their order, each byte in one piece.

    `n_bytes`, of all documents, is for the rule `volume`.
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
_SHARD = r"[-_. ]?\d+(?:[-_]of[-_]\d+)?"
_WHOLE = re.compile(rf"({_WORDS})(?:(?:[-_ ]?(?:set|data|split))?(?:{_SHARD})?|[-_.].*-\d+-of-\d+)")
_INSIDE = re.compile(rf"(?<![a-z0-9])({'|'.join((*_HELD_OUT, *_TEST))})(?![a-z])")


def by_name(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the training, held-out and test text among files, by their names.

    A name counts if, without suffixes and the number of a shard, it is one of the words and not in
    a subfolder, or if the word train in the place of that word makes the name of another file or
    folder: `wiki.valid.tokens` beside `wiki.train.tokens`, `data/dev/` beside `data/train/`.
    Source code is training text with every name.

    The test text is the held-out text if there is no other. Other files beside records of training
    text are in none of the lists. If the names leave no training text, all files are.
    """
    names = {
        path: tuple(re.sub(_SHARD, "", _unpacked(part)) for part in path.relative_to(folder).parts)
        for path in files
        if textfiles.kind(path) not in textfiles.SOURCE_CODE
    }
    known = {own[:end] for own in names.values() for end in range(1, len(own) + 1)}
    words, counterparts = dict[Path, str](), set[tuple[str, ...]]()
    for path, own in names.items():
        if len(own) == 1 and (whole := _WHOLE.fullmatch(Path(_unpacked(path.name)).stem)):
            words[path] = whole[1]
            continue
        for place, name in enumerate(own):
            for word in _INSIDE.finditer(name):
                for as_train in _TRAIN:
                    other = (*own[:place], name[: word.start()] + as_train + name[word.end() :])
                    if other in known:
                        words[path] = word[1]
                        counterparts.add(other)
    for path, own in names.items():
        if any(own[:end] in counterparts for end in range(1, len(own) + 1)):
            words.setdefault(path, _TRAIN[0])
    train, held_out, test = (
        [path for path in files if words.get(path) in group] for group in (_TRAIN, _HELD_OUT, _TEST)
    )
    if not held_out:
        held_out, test = test, []
    named = {*held_out, *test}
    rest = [path for path in files if path not in named]
    if not rest:
        return list(files), [], []
    return [path for path in train if _has_records(path)] or rest, held_out, test


def _unpacked(name: str) -> str:
    path = Path(name.lower())
    return path.stem if path.suffix in textfiles.PACKED_SUFFIXES else path.name


def _has_records(path: Path) -> bool:
    """Whether a file has records; False for one that cannot be read, which its reader reports."""
    try:
        return bool(textfiles.record_kind(path))
    except (DataError, EnvironmentLacks):
        return False


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
    batches are as wide as the longest row. `eval_tokens` labels, those of prompts included, rounded
    up to whole sequences, are spread evenly over the file; None is the whole file.
    """
    indices = _chosen(file, seq_len, eval_tokens)
    stop = len(indices) if count is None else min(len(indices), (first + count) * batch_size)
    table = file.rows(seq_len)
    width = seq_len if table is None else padded(int(table.length.max()))
    for start in range(first * batch_size, stop, batch_size):
        chosen = indices[start : start + batch_size]
        x = np.full((batch_size, width), file.bos, np.int32)
        y = np.full((batch_size, width), IGNORED, np.int32)
        x[: len(chosen)], y[: len(chosen)] = file.read(chosen, seq_len, width)
        if table is None:
            x[y == IGNORED] = file.bos  # behind the text
        y[y == file.bos] = IGNORED
        yield Batch(x, y, file.text_bytes(y))


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

    `nats` is the sum over the labels that `batches` counts, `n_bytes` that of the batches, of the
    text before a tokenizer changed it.
    """
    return nats / (math.log(2) * n_bytes)


def marks(text: bytes) -> dict[str, float]:
    """Return the bits per byte of every simple model on the begin of a text, `MARKED_BYTES` of it.

    >>> marks(b"never wait, add without a lock. " * 100)
    {'uniform': 8.0, 'unigram': 3.906, 'gzip': 0.19, 'xz': 0.3}
    """
    import lzma  # which a Python may lack, see `textfiles`

    text = text[:MARKED_BYTES]
    n_bytes = max(len(text), 1)
    shares = np.bincount(np.frombuffer(text, np.uint8)) / n_bytes
    shares = shares[shares > 0]
    # As `xz -9e`, with a dictionary of this size: that of the preset needs 670 MB.
    best = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": MARKED_BYTES}
    bits = {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / n_bytes,
        "xz": 8 * len(lzma.compress(text, filters=[best])) / n_bytes,
    }
    # Not 0 for a text that only repeats itself.
    return {"uniform": 8.0} | {name: max(0.01, round(n, 3)) for name, n in bits.items()}
