"""Preparing a corpus once: token files of training and held-out text, stored for later runs.

The name of a prepared directory is a digest of its inputs: the text, the tokenizer and the held-out
rule. It appears when it is whole, under a file lock, so processes that prepare the same corpus at
once end with one good copy, and no process trusts the incomplete directory of a killed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.base import darwin, disk, plain_json
from mlxhog.base.cache import user_cache_directory
from mlxhog.base.durable import (
    disk_errors,
    explained,
    new_directory,
    remove,
    require_space,
    write_synced,
)
from mlxhog.base.inside import inside
from mlxhog.base.locks import lock_file
from mlxhog.base.quantities import format_bytes
from mlxhog.data import corpora, heldout, textfiles, tokenizers
from mlxhog.data.corpora import Corpus, Show, show_nothing
from mlxhog.data.heldout import Scan
from mlxhog.data.machine_data import MachineData
from mlxhog.data.sotu import SOTU
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter, item_size
from mlxhog.errors import DataError, EnvironmentLacks

_VERSION = "mlxhog-prepared-3"
_RECORD = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus."""

    train: Path  # the training token file, a `.bin`
    val: Path  # the held-out one
    tokenizer: Tokenizer  # of both files
    spec: str  # its name, see `tokenizers.build`
    corpus_sha256: str  # over the documents, joined by one zero byte
    rule: str  # of `heldout`
    notes: tuple[str, ...]  # for the user about the text, one sentence each
    corpus: Corpus  # without the files that cannot be read
    n_bytes: int  # of its text, with the held-out text
    marks: Mapping[str, float]  # see `heldout.marks`

    def open(self, seq_len: int) -> tuple[TokenFile, TokenFile]:
        """Return the open training and held-out files.

        Raises:
            DataError: a file is damaged or shorter than one sequence.
        """
        files = TokenFile.open(self.train), TokenFile.open(self.val)
        for file, part in zip(files, ("training", "held-out"), strict=True):
            if file.n_sequences(seq_len) < 1:
                raise DataError(
                    f"{self.corpus.source} is too short: {file.n_tokens:,} {part} tokens, and one "
                    f"sequence needs {seq_len + 1:,}{self.corpus.in_brackets()}; "
                    "use more text or a smaller seq_len"
                )
        return files

    def inventory(self) -> dict[str, Any]:
        """Describe the files of the corpus in JSON types; this reads them again.

        It has `source`; `files` with `path`, `n_bytes` on the disk and `held_out_bytes`; and
        `skipped`, files with `path` and `reason`.
        """
        corpus, held_out = self.corpus, Counter[str]()
        for file, is_held_out, text in _pieces(corpus, self.rule, self.n_bytes, Scan()):
            held_out[file] += is_held_out * len(text)
        return {
            "source": corpus.source,
            "files": [
                {"path": str(path), "n_bytes": size, "held_out_bytes": held_out[str(path)]}
                for path in (*corpus.files(), *corpus.files(held_out=True))
                for size in [path.stat().st_size]
            ],
            "skipped": [one.to_json() for one in corpus.skipped],
        }


def prepare(
    source: str,
    tokenizer: str = "bytes",
    *,
    val: str = "every-12th",
    text_key: str | None = None,
    loss_on: str = "assistant",
    strict: bool = False,
    skip_machine_data: bool = False,
    width: int = 128,
    show: Show = show_nothing,
) -> Prepared:
    """Make the token files of a corpus, or return those that an earlier call made.

    `source` and `text_key` are those of `corpora.find`; `tokenizer` is that of `tokenizers.build`,
    or "auto" (`tokenizers.choose`, for a model of this width); `val` is the held-out rule.
    `loss_on="all"` also learns prompts and the messages of users, `strict` refuses bad files of a
    folder, and `skip_machine_data` leaves out base64 and the like. `show` is told how far it is.

    Raises:
        DataError: the corpus or the tokenizer is missing, empty, malformed or too short for
            held-out text; the corpus changed meanwhile; or a file is bad and `strict`.
        EnvironmentLacks: the disk is full, or a package is missing.

    Concurrency: safe to call from several processes at once; one writes, the others wait.
    """
    cache = user_cache_directory()
    machine = MachineData(skip=skip_machine_data)
    corpus = corpora.find(source, text_key, show).mapped(machine.read)
    if loss_on == "all":
        corpus = corpus.mapped(lambda texts, _: textfiles.short_documents(map(bytes, texts)))
    corpus, scan = corpora.readable(corpus, strict=strict, show=show)
    rule, spec, notes = _rule(val, corpus, scan), tokenizer, list[str]()
    if spec == tokenizers.AUTO:
        n_bytes = scan.n_bytes - scan.given_bytes
        spec, note = tokenizers.choose(n_bytes=n_bytes, width=width, sha256=scan.sha256, rule=rule)
        notes += [note] if note else []
    unread = {str(one.path) for one in corpus.skipped if one.reason != corpora.NO_TEXT}
    notes += machine.notes(scan.n_bytes, unread)
    parts = [_VERSION, scan.sha256, tokenizers.identity(spec), rule, str(scan.n_given)]
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()
    target = (cache / key[:32]).absolute()
    with _locked(cache, target.name):
        stored = _stored(target, key)
        if stored is None:
            if target.exists():
                notes.append(f"the stored tokens of {corpus.source} were damaged and are made anew")
            try:
                _write(target, key, corpus, scan, rule, spec, show)
            except OSError as error:
                raise _bad_cache(cache, f"tokens cannot be written: {explained(error)}") from error
            if (stored := _stored(target, key)) is None:
                raise _bad_cache(cache, "what was written cannot be read")
    notes += filter(None, [disk.note(cache, disk.FILES_ALONE)])
    made_by, marks, changed = stored
    return Prepared(
        train=target / "train.bin",
        val=target / "val.bin",
        tokenizer=made_by,
        spec=spec,
        corpus_sha256=scan.sha256,
        rule=rule,
        # Not stored: the same text may come from another folder, with other files, next time.
        notes=(*corpus.notes(), *_notes(scan, rule, changed), *notes),
        corpus=corpus,
        n_bytes=scan.n_bytes,
        marks=marks,
    )


def _rule(val: str, corpus: Corpus, scan: Scan) -> str:
    """The held-out rule of a text; examples are never cut."""
    rule = heldout.rule_for(val, scan)
    if corpus.has_held_out:
        return "given"
    if rule != "tail" or not scan.n_examples:
        return rule
    if val == "tail":
        raise DataError(
            f"{corpus.source} has {scan.n_examples} examples of prompt and completion among "
            f"{scan.n_documents} documents, and val is tail, which cuts each in two; use "
            "val=every-12th with 6 documents or more, or name the held-out ones: a folder with "
            "train.jsonl and valid.jsonl"
        )
    return heldout.SAME


def _notes(scan: Scan, rule: str, changed: int) -> list[str]:
    n = scan.n_documents
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


def _pieces(
    corpus: Corpus, rule: str, n_bytes: int, scan: Scan
) -> Iterator[tuple[str, bool, bytes]]:
    """Yield (file, held out, text) pieces of a corpus with `n_bytes`; `scan` counts documents."""
    part = corpus.parts[0]

    def documents() -> Iterator[bytes]:
        nonlocal part
        for part in corpus.parts:
            for document in part.read():
                scan.add(document, held_out=part.held_out)
                yield document

    pieces: Iterator[tuple[bool, bytes]]
    if rule == heldout.SAME:
        pieces = ((held_out, one) for one in documents() for held_out in (False, True))
    elif corpus.has_held_out:
        pieces = ((part.held_out, one) for one in documents())
    else:
        pieces = heldout.split(documents(), rule, n_bytes)
    for held_out, text in pieces:
        yield part.name, held_out, text


# -- the cache -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    locks = cache / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = open(locks / name, "w", opener=inside(locks))
    except OSError as error:
        raise DataError(
            f"the cache directory {cache} cannot be written ({darwin.reason(error)}); "
            "set XDG_CACHE_HOME to a writable folder"
        ) from error
    with lock, lock_file(lock, locks / name, fcntl.LOCK_EX):
        yield


def _bad_cache(cache: Path, why: str) -> EnvironmentLacks:
    return EnvironmentLacks(f"{cache}: {why}; set XDG_CACHE_HOME to a folder on another disk")


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
    target: Path, key: str, corpus: Corpus, scan: Scan, rule: str, spec: str, show: Show
) -> None:
    """Write a prepared directory; it appears when it is whole."""
    doing, n_bytes = f"preparing {corpus.source}", scan.n_bytes

    def training_text() -> Iterator[bytes]:
        for _, held_out, text in _pieces(corpus, rule, n_bytes, Scan()):
            show(lambda: f"learning the vocabulary {spec} of {format_bytes(n_bytes)} of text")
            if not held_out:
                yield text

    target.parent.mkdir(parents=True, exist_ok=True)
    for end in ("part", "old"):  # of a killed process
        remove(target.with_name(f"{target.name}.{end}"))
    with disk_errors(doing, only_full=True), new_directory(target) as part:
        tokenizer = tokenizers.build(spec, training_text)
        tokens_per_byte = len(tokenizer.encode(scan.sample)) / len(scan.sample)
        require_space(part, int(n_bytes * tokens_per_byte) * item_size(tokenizer), doing)
        for name, content in tokenizer.files().items():
            write_synced(part / name, content)
        held_out = _write_tokens(part, corpus, scan, rule, tokenizer, show)
        marks = {} if corpus.source == SOTU else heldout.marks(held_out)
        record = {"key": key, "source": corpus.source, "tokenizer": spec, "marks": marks}
        write_synced(part / _RECORD, json.dumps(record, indent=1).encode())


def _write_tokens(
    part: Path, corpus: Corpus, scan: Scan, rule: str, tokenizer: Tokenizer, show: Show
) -> bytes:
    """Write both token files; returns the begin of the held-out text."""
    files = [part / f"{split}.bin" for split in ("train", "val")]
    train, val = (
        TokenWriter(file, tokenizer, split=file.stem, source=corpus.source) for file in files
    )
    again, begin = Scan(), b""

    def progress() -> str:
        return f"tokenizing {again.n_bytes / scan.n_bytes:.0%} of {format_bytes(scan.n_bytes)}"

    with train, val:
        for _, held_out, text in _pieces(corpus, rule, scan.n_bytes, again):
            show(progress)
            (val if held_out else train).add(text)
            if held_out and len(begin) < heldout.MARKED_BYTES:
                begin += text
    if again.sha256 != scan.sha256:
        raise DataError(f"{corpus.source} changed while it was read; try again")
    for file, name in zip(files, ("training", "held-out"), strict=True):
        if not file.stat().st_size:
            raise DataError(
                f"{corpus.source} is too short: no {name} text{corpus.in_brackets()}; use more text"
            )
    return begin
