"""Preparing a corpus once: token files of training and held-out text, stored for later runs.

The name of a prepared directory is a digest of its inputs: the text, the tokenizer and the held-out
rule. A directory appears when it is whole, under a file lock.
So processes that prepare the same corpus at once end with one good copy, and no later process
trusts the incomplete directory of a killed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mlxhog.base import plain_json
from mlxhog.base.cache import user_cache_directory
from mlxhog.base.durable import disk_errors, new_directory, remove, require_space, write_synced
from mlxhog.data import auto_tokenizer, corpora, heldout, textfiles, tokenizers
from mlxhog.data.examples import Example
from mlxhog.data.machine_data import MachineData
from mlxhog.data.sotu import SOTU
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter, item_size
from mlxhog.errors import DataError

_VERSION = "mlxhog-prepared-3"
_RECORD = "prepared.json"
_SAMPLE_BYTES = 65_536
_TOGETHER = 1 << 22  # bytes of text that are encoded together


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus.

    Attributes:
        train: the training token file, a `.bin`.
        val: the held-out token file, a `.bin`.
        tokenizer: the tokenizer of both files.
        spec: its name, see `tokenizers.build`.
        source: the name of the corpus.
        corpus_sha256: digest over the documents, joined by one zero byte.
        rule: the held-out rule; `given` if the corpus has its own held-out text, `heldout.SAME` if
            its examples are too few to hold one out.
        notes: notes for the user about the text, one sentence each.
        corpus: the corpus, without the files that cannot be read.
        n_bytes: of its text, with the held-out text.
        marks: bits per byte of simple models on the held-out text, see `heldout.marks`.
    """

    train: Path
    val: Path
    tokenizer: Tokenizer
    spec: str
    source: str
    corpus_sha256: str
    rule: str
    notes: tuple[str, ...]
    corpus: corpora.Corpus
    n_bytes: int
    marks: Mapping[str, float]

    def open(self, seq_len: int) -> tuple[TokenFile, TokenFile]:
        """Return the open training and held-out files.

        Raises:
            DataError: a file is damaged or shorter than one sequence.
        """
        files = TokenFile.open(self.train), TokenFile.open(self.val)
        for file, part in zip(files, ("training", "held-out"), strict=True):
            if file.n_sequences(seq_len) < 1:
                raise DataError(
                    f"{self.source} is too short: {file.n_tokens:,} {part} tokens, and one "
                    f"sequence needs {seq_len + 1:,}{self.corpus.in_brackets()}; "
                    "use more text or a smaller seq_len"
                )
        return files

    def held_out_bytes(self) -> Counter[str]:
        """Return the bytes of each file that are held-out text; this reads the files again.

        Raises:
            DataError: a file has changed or is unreadable.
        """
        held_out, file = Counter[str](), ""

        def named(documents: Iterable[bytes], name: str) -> Iterator[bytes]:
            nonlocal file
            for document in documents:
                file = name
                yield document

        for is_held_out, text in _pieces(self.corpus.mapped(named), self.rule, self.n_bytes):
            held_out[file] += is_held_out * len(text)
        return held_out


def prepare(
    source: str,
    tokenizer: str = "bytes",
    *,
    cache_dir: Path | None = None,
    val: str = "every-12th",
    text_key: str | None = None,
    loss_on: str = "assistant",
    strict: bool = False,
    skip_machine_data: bool = False,
    width: int = 128,
    progress: bool = False,
) -> Prepared:
    """Make the token files of a corpus, or return those that an earlier call made.

    Args:
        source: a corpus; see `corpora.find`.
        tokenizer: see `tokenizers.build`; or "auto", see `auto_tokenizer`.
        cache_dir: folder of the prepared corpora; None is `user_cache_directory()`.
        val: the held-out rule; see `split`.
        text_key: for `.jsonl`, the key of the text.
        loss_on: "all" also learns prompts and the messages of users.
        strict: whether a bad file of a folder or a glob is an error; if not, it is skipped.
        skip_machine_data: whether base64 and the like are left out, see `machine_data`.
        width: of the model, for "auto".
        progress: whether bars show on a terminal how far a tokenizer is learnt.

    Raises:
        DataError: the corpus or the tokenizer is missing, empty, malformed or too short for
            held-out text; the corpus changed meanwhile; or a file is bad and `strict`.
        EnvironmentLacks: the disk is full, or a package is missing.

    Concurrency: safe to call from several processes at once; one writes, the others wait.
    """
    cache = cache_dir or user_cache_directory()
    machine = MachineData(skip=skip_machine_data)
    corpus = corpora.find(source, text_key).mapped(machine.read)
    if loss_on == "all":
        corpus = corpus.mapped(lambda texts, _: textfiles.short_documents(map(bytes, texts)))
    corpus, scan = _scan(corpus, strict)
    machine.is_measured = True
    rule = heldout.rule_for(val, scan.sizes)
    if corpus.has_held_out:
        rule = "given"
    elif rule == "tail" and scan.n_examples:
        if val == "tail":
            raise DataError(
                f"{corpus.source} has {scan.n_examples} examples of prompt and completion among "
                f"{scan.sizes.n_documents} documents, and val is tail, which cuts each in two; use "
                "val=every-12th with 6 documents or more, or name the held-out ones: a folder with "
                "train.jsonl and valid.jsonl"
            )
        rule = heldout.SAME
    spec, notes = tokenizer, list[str]()
    if spec == auto_tokenizer.AUTO:
        n_bytes = scan.sizes.n_bytes - scan.given_bytes
        spec, note = auto_tokenizer.choose(
            n_bytes=n_bytes, width=width, sha256=scan.sha256, rule=rule
        )
        notes += [note] if note else []
    unread = {str(one.path) for one in corpus.skipped if one.reason != corpora.NO_TEXT}
    notes += machine.notes(scan.sizes.n_bytes, unread)
    parts = [_VERSION, scan.sha256, tokenizers.identity(spec), rule, str(scan.n_given)]
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()
    target = (cache / key[:32]).absolute()
    with _locked(cache, target):
        stored = _stored(target, key)
        if stored is None:
            if target.exists():
                notes.append(f"the stored tokens of {corpus.source} were damaged and are made anew")
            _write(target, key, corpus, scan, rule, spec, progress)
            stored = _stored(target, key)
    if stored is None:
        raise DataError(f"{target} cannot be read back as it was written; check the disk")
    made_by, marks, changed = stored
    return Prepared(
        train=target / "train.bin",
        val=target / "val.bin",
        tokenizer=made_by,
        spec=spec,
        source=corpus.source,
        corpus_sha256=scan.sha256,
        rule=rule,
        # Not stored: the same text may come from another folder, with other files, next time.
        notes=(*corpus.notes(), *_notes(scan, rule, changed), *notes),
        corpus=corpus,
        n_bytes=scan.sizes.n_bytes,
        marks=marks,
    )


def _notes(scan: _Scan, rule: str, changed: int) -> list[str]:
    n = scan.sizes.n_documents
    notes = (
        (changed,
         f"the tokenizer changes the text of {changed} of {n} documents: the model learns and "
         "writes the changed text; bits per byte are of the original bytes"),
        (scan.n_examples,
         f"{scan.n_examples} of {n} documents are examples of prompt and completion, or "
         "conversations: every loss, also on held-out text, counts only completions and answers "
         "(--loss-on all counts everything)"),
        (rule == heldout.SAME,
         "no example is held out of fewer than 6, so evaluations are of the training text and say "
         "nothing about other text; use more examples, or a folder with train.jsonl and "
         "valid.jsonl"),
    )  # fmt: skip
    return [note for applies, note in notes if applies]


# -- reading a corpus ------------------------------------------------------------------------------


def _hash(digest: Any, document: bytes, *, is_first: bool) -> None:
    """Add a document to a SHA-256; they are joined by a zero byte, examples begin with lengths."""
    if isinstance(document, Example):
        lengths = " ".join(map(str, document.lengths[:-1]))
        digest.update(f"\0prompt {lengths}\0".encode())
    digest.update(b"" if is_first else b"\0")
    digest.update(document)


@dataclass
class _Scan:
    """Counts of a corpus from its first reading."""

    digest: Any = field(default_factory=hashlib.sha256)
    sizes: heldout.Sizes = heldout.Sizes()
    n_given: int = 0
    given_bytes: int = 0
    n_examples: int = 0
    sample: bytes = b""

    @property
    def sha256(self) -> str:
        """The digest of the documents."""
        return str(self.digest.hexdigest())


def _scan(corpus: corpora.Corpus, strict: bool) -> tuple[corpora.Corpus, _Scan]:
    """Read a corpus once; return it without its bad files, and its counts."""
    scan = _Scan()

    def take(documents: Iterator[bytes], part: corpora.Part) -> int:
        nonlocal scan
        before, after = scan, replace(scan, digest=scan.digest.copy())
        for document in documents:
            _hash(after.digest, document, is_first=not after.sizes.n_documents)
            after.sizes = after.sizes.plus(document)
            after.n_given += part.held_out
            after.given_bytes += part.held_out * len(document)
            after.n_examples += isinstance(document, Example)
            if len(after.sample) < _SAMPLE_BYTES:
                after.sample += document[:_SAMPLE_BYTES]
        scan = after
        return after.sizes.n_documents - before.sizes.n_documents

    corpus = corpora.checked(corpus, take, strict=strict)
    if not scan.sizes.n_documents:
        raise DataError(f"the corpus {corpus.source!r} has no text; choose other files")
    return corpus, scan


def _pieces(corpus: corpora.Corpus, rule: str, n_bytes: int) -> Iterator[tuple[bool, bytes]]:
    """Yield (held out, text) pieces of the whole corpus, which has `n_bytes`."""
    if rule == heldout.SAME:
        yield from ((held_out, one) for one in corpus.documents() for held_out in (False, True))
    elif corpus.has_held_out:
        for held_out in (False, True):
            yield from ((held_out, document) for document in corpus.documents(held_out=held_out))
    else:
        yield from heldout.split(corpus.documents(), rule, n_bytes)


# -- the cache -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(cache: Path, target: Path) -> Iterator[None]:
    """Hold the lock of one target during the block; the kernel frees it if the holder dies."""
    locks = cache / "locks"
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = (locks / name).open("w")
    except OSError as error:
        raise DataError(
            f"the cache directory {cache} cannot be written ({error.strerror}); "
            "set XDG_CACHE_HOME to a writable folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stored(target: Path, key: str) -> tuple[Tokenizer, Mapping[str, float], int] | None:
    """Return tokenizer, marks and number of changed documents; None if absent or damaged."""
    try:
        record = plain_json.read(target / _RECORD)
        marks = {name: float(bits) for name, bits in record["marks"].items()}
        tokenizer = tokenizers.load(target)
        headers = [TokenFile.open(target / f"{split}.bin").header for split in ("train", "val")]
        own = {header["tokenizer_sha256"] for header in headers} == {tokenizer.sha256}
        is_whole = record["key"] == key and own
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    changed = sum(header.get("changed", 0) for header in headers)
    return (tokenizer, marks, changed) if is_whole else None


def _write(
    target: Path,
    key: str,
    corpus: corpora.Corpus,
    scan: _Scan,
    rule: str,
    spec: str,
    progress: bool,
) -> None:
    """Write a prepared directory; it appears when it is whole."""
    pieces = partial(_pieces, corpus, rule, scan.sizes.n_bytes)
    doing = f"preparing {corpus.source}"
    target.parent.mkdir(parents=True, exist_ok=True)
    for end in ("part", "old"):  # of a killed process
        remove(target.with_name(f"{target.name}.{end}"))
    with disk_errors(doing, only_full=True), new_directory(target) as part:
        tokenizer = tokenizers.build(
            spec, lambda: (text for held_out, text in pieces() if not held_out), progress=progress
        )
        tokens_per_byte = len(tokenizer.encode(scan.sample)) / len(scan.sample)
        n_tokens = int(scan.sizes.n_bytes * tokens_per_byte)
        require_space(part, n_tokens * item_size(tokenizer), doing)
        for name, content in tokenizer.files().items():
            write_synced(part / name, content)
        held_out = _write_tokens(part, corpus, scan, rule, tokenizer)
        record = {
            "key": key,
            "source": corpus.source,
            "corpus_sha256": scan.sha256,
            "documents": scan.sizes.n_documents,
            "bytes": scan.sizes.n_bytes,
            "rule": rule,
            "tokenizer": spec,
            "marks": {} if corpus.source == SOTU else heldout.marks(held_out),
        }
        write_synced(part / _RECORD, json.dumps(record, indent=1).encode())


def _write_tokens(
    part: Path, corpus: corpora.Corpus, scan: _Scan, rule: str, tokenizer: Tokenizer
) -> bytes:
    """Write both token files; returns the begin of the held-out text."""
    digest, is_first, begin = hashlib.sha256(), True, b""
    group: list[tuple[bool, bytes]] = []  # encoded in parallel

    def hashed(documents: Iterable[bytes], name: str) -> Iterator[bytes]:
        nonlocal is_first
        for document in documents:
            _hash(digest, document, is_first=is_first)
            is_first = False
            yield document

    train, val = (
        TokenWriter(part / f"{split}.bin", tokenizer, split=split, source=corpus.source)
        for split in ("train", "val")
    )

    def add() -> None:
        nonlocal begin
        train.add_all([text for held_out, text in group if not held_out])
        held_out = [text for held_out, text in group if held_out]
        val.add_all(held_out)
        begin += b"".join(held_out) if len(begin) < heldout.MARKED_BYTES else b""
        group.clear()

    with train, val:
        n_bytes = 0
        for piece in _pieces(corpus.mapped(hashed), rule, scan.sizes.n_bytes):
            group.append(piece)
            n_bytes += len(piece[1])
            if n_bytes >= _TOGETHER:  # little enough for memory
                add()
                n_bytes = 0
        add()
    if digest.hexdigest() != scan.sha256:
        raise DataError(f"{corpus.source} changed while it was read; try again")
    for split, name in (("train", "training"), ("val", "held-out")):
        if not (part / f"{split}.bin").stat().st_size:
            raise DataError(
                f"{corpus.source} is too short: no {name} text{corpus.in_brackets()}; use more text"
            )
    return begin
