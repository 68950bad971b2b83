"""Prepare a corpus once: token files of training and validation text, cached for later runs.

The name of a prepared directory is a digest of the text, the tokenizer and the validation split. It
appears when it is whole, under a file lock, so that concurrent processes share one good copy, and
no process trusts the incomplete directory of a killed one.

The cache is bounded (`max_bytes`): a new text replaces the least recently used ones that no process
has open. Only this user can read or write them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.base import darwin, disk, plain_json
from mlxhog.base.cache import is_own, own_directory, restrict, user_cache_directory
from mlxhog.base.durable import (
    disk_bytes,
    disk_errors,
    explained,
    new_directory,
    remove,
    require_space,
    write_synced,
)
from mlxhog.base.inside import inside
from mlxhog.base.locks import is_in_use, lock_file
from mlxhog.base.paths import printable
from mlxhog.base.quantities import format_bytes
from mlxhog.baselines import compressors
from mlxhog.data import corpora, split, textfiles, tokenizers
from mlxhog.data.corpora import Corpus, Show, show_nothing
from mlxhog.data.machine_data import MachineData
from mlxhog.data.sotu import SOTU
from mlxhog.data.split import KnownText, Scan, Split
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter, item_size
from mlxhog.errors import DataError, EnvironmentLacks

_VERSION = "mlxhog-prepared-6"
_RECORD = "prepared.json"
OPTIONS = ("text_key", "document_separator", "skip_machine_data", "loss_on", "val")
"""Options of `train` that are arguments of `prepare`."""
SETTLED_S = 3.0  # age of a file whose next change gets another time; FAT counts in 2 s
_last: tuple[object, tuple[Corpus, Scan, MachineData]] | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus."""

    train: TokenFile  # the training text
    val: TokenFile  # the validation text
    tokenizer: Tokenizer  # of both files
    spec: str  # the tokenizer's name, see `tokenizers.build`
    corpus_sha256: str  # over the documents, joined by one zero byte
    text: KnownText  # parts and their sides
    added: Mapping[str, int] | None  # new text of a resumed run, see `split`
    kept: float  # share of a resumed run's known parts that are present, edited ones included
    notes: tuple[str, ...]  # for the user, one sentence each
    corpus: Corpus  # without the files that cannot be read
    n_bytes: int  # of all text
    baselines: Mapping[str, float]  # see `baselines.compressors`

    def check_length(self, seq_len: int) -> None:
        """Raise DataError if a file is shorter than one sequence."""
        for file, part in ((self.train, "training"), (self.val, "validation")):
            if file.n_sequences(seq_len) < 1:
                raise DataError(
                    f"{self.corpus.source} is too short: {file.n_tokens:,} {part} tokens, and one "
                    f"sequence needs {seq_len + 1:,}{self.corpus.in_brackets()}; "
                    "use more text or a smaller seq_len"
                )

    @property
    def rule(self) -> str:
        """The rule of its validation split, see `split`."""
        return self.text.split.rule

    def inventory(self) -> dict[str, Any]:
        """Read the files of the corpus again, and describe them as JSON values.

        These are `source`, `files` with `path`, `n_bytes` on the disk and `val_bytes`, and
        `skipped` files with `path` and `reason`.
        """
        corpus, validation = self.corpus, Counter[str]()
        for file, is_validation, text in _pieces(corpus, self.text.split, Scan(split.WHOLE)):
            validation[file] += is_validation * len(text)
        return {
            "source": corpus.source,
            "files": [
                {"path": str(path), "n_bytes": size, "val_bytes": validation[str(path)]}
                for path in (*corpus.files(), *corpus.files(validation=True))
                for size in [path.stat().st_size]
            ],
            "skipped": [one.to_json() for one in corpus.skipped],
        }


def prepare(
    source: str,
    tokenizer: str = "bytes",
    *,
    val: str = "hash",
    text_key: str | None = None,
    document_separator: str | None = textfiles.AUTO,
    loss_on: str = "assistant",
    strict: bool = False,
    skip_machine_data: bool = False,
    width: int = 128,
    known: KnownText | None = None,
    resumes: bool = False,
    learned: Path | None = None,
    show: Show = show_nothing,
) -> Prepared:
    """Create the token files of a corpus, or return those of an earlier call.

    `source`, `text_key` and `document_separator` are as in `corpora.find`, `tokenizer` as in
    `tokenizers.build`, or "auto" (`tokenizers.choose`, for a model of this width); `val` is the
    validation split. `loss_on="all"` also computes the loss on prompts and users' messages,
    `strict` refuses bad files of a folder, and `skip_machine_data` leaves out base64 and the like.
    `known` is the text of the run that is resumed (`resumes`), or whose weights a new run begins
    with; `learned` is a folder with the former's tokenizer, which is not trained again. `show` gets
    the progress.

    Raises:
        DataError: the corpus or the tokenizer is missing, empty, malformed or too short for
            validation text; the corpus changed meanwhile; or a file is bad and `strict`.
        EnvironmentLacks: the disk is full, or a package is missing.

    Concurrency: safe to call from several processes at once; one writes, the others wait.
    """
    cache = _cache()
    every = corpora.find(source, text_key, show, document_separator)
    if (name := printable(every.source)) != every.source:  # records of runs are UTF-8
        raise DataError(f"the path {name} is not UTF-8; rename it, or name a link to it")
    predefined = every.source == SOTU
    fresh_cut = split.cut_of(val, predefined=predefined)
    cut = fresh_cut if known is None else known.split.cut
    how = (text_key, document_separator, loss_on, skip_machine_data, strict)
    corpus, scan, machine = _scanned(every, *how, cut, show)
    if known is not None and cut != fresh_cut and not known.has_any(scan):
        corpus, scan, machine = _scanned(every, *how, fresh_cut, show)
    notes = list[str]()
    _check_tail(val, corpus, scan)
    kept = 1.0 if known is None else known.kept(scan)
    chosen = split.choose(
        val, scan, given=corpus.has_validation, predefined=predefined, known=known,
        resumes=resumes,
    )  # fmt: skip
    named = document_separator not in (textfiles.AUTO, None, "")
    if named and not any(one.separators for one in corpus.parts):
        notes.append(f"the document separator {document_separator!r} does not occur in the text")
    rule, spec = chosen.rule, tokenizer
    if spec == tokenizers.AUTO:
        n_bytes = scan.n_bytes - scan.given_bytes
        spec, note = tokenizers.choose(n_bytes=n_bytes, width=width, sha256=scan.sha256, rule=rule)
        notes += [note] if note else []
    if chosen.seen:
        notes.append(
            f"{chosen.seen:.1%} of the validation text is text that these weights were trained on, "
            "so its score says little about other text; name unseen text with --data"
        )
    unread = {str(one.path) for one in corpus.skipped if one.reason != corpora.NO_TEXT}
    notes += machine.notes(scan.n_bytes, unread)
    specs = [spec] if learned is None else [spec, str(learned)]
    for one in specs:  # a tokenizer that was trained on this text is cached
        parts = [_VERSION, scan.sha256, tokenizers.identity(one), chosen.key, str(scan.n_given)]
        key = hashlib.sha256("|".join(parts).encode()).hexdigest()
        target = (cache / key[:32]).absolute()
        if learned is None:
            continue
        with contextlib.suppress(DataError, OSError):
            if tokenizers.load(target).sha256 == tokenizers.load(learned).sha256:
                break
    with _locked(cache, target.name):
        is_ours = is_own(target)
        stored = _stored(target, key) if is_ours else None
        if is_made := stored is None:
            if target.exists():
                why = "were damaged" if is_ours else "could be written by other users"
                notes.append(f"the stored tokens of {corpus.source} {why} and are made anew")
            try:
                _write(target, key, corpus, scan, chosen, one, show)
            except OSError as error:
                raise _bad_cache(cache, f"tokens cannot be written: {explained(error)}") from error
            if (stored := _stored(target, key)) is None:
                raise _bad_cache(cache, "what was written cannot be read")
    if is_made and (removed := _shrink(cache, target)):
        notes.append(
            f"removed the stored tokens of {len(removed)} texts, unused since "
            f"{time.strftime('%d %B %Y', time.localtime(removed[-1].used_s))}, "
            f"{format_bytes(sum(one.n_bytes for one in removed))}: the cache has "
            f"{format_bytes(max_bytes(cache))} (mlxhog cache)"
        )
    notes += filter(None, [disk.note(cache, disk.FILES_ALONE)])
    before = known.skipped if known is not None and resumes else frozenset[str]()
    told = (printable(one.path) for one in corpus.skipped)
    files, made_by, baselines = stored
    changed = sum(file.header.get("changed", 0) for file in files)
    return Prepared(
        train=files[0],
        val=files[1],
        tokenizer=made_by,
        spec=spec,
        corpus_sha256=scan.sha256,
        text=KnownText.of(scan, chosen, known, told),
        added=None if known is None else known.added(scan, chosen),
        kept=kept,
        # Not stored: the same text may come from another folder, with other files, next time.
        notes=(*corpus.notes(before=before), *_notes(scan, rule, changed), *notes),
        corpus=corpus,
        n_bytes=scan.n_bytes,
        baselines=baselines,
    )


def _scanned(
    every: Corpus, text_key: str | None, separator: str | None, loss_on: str, skip: bool,
    strict: bool, cut: int, show: Show,
) -> tuple[Corpus, Scan, MachineData]:  # fmt: skip
    """Read a corpus as `corpora.readable`, or return the last call's result for the same text.

    A file that changed shortly before is read again, since its next change may have the same time.
    """
    global _last
    stamps = [one.stamp() for one in every.parts]
    key = (every.source, every.skipped, stamps, text_key, separator, loss_on, skip, strict, cut)
    if (last := _last) is None or last[0] != key:
        is_settled = all(changed_s < time.time() - SETTLED_S for _, changed_s in stamps)
        machine = MachineData(skip=skip)
        corpus = with_loss_on(every.mapped(machine.read), loss_on)
        corpus, scan = corpora.readable(corpus, strict=strict, show=show, cut=cut)
        last = key, (corpus, scan, machine)
        if is_settled and not any(one.lacks for one in corpus.skipped):
            _last = last
    corpus, scan, machine = last[1]
    return corpus, scan.copy(), machine


def with_loss_on(corpus: Corpus, loss_on: str) -> Corpus:
    """Return a corpus whose examples are plain text if `loss_on` is "all"."""
    if loss_on != "all":
        return corpus
    return corpus.mapped(lambda texts, _: textfiles.short_documents(map(bytes, texts)))


def _check_tail(val: str, corpus: Corpus, scan: Scan) -> None:
    if val == "tail" and scan.n_examples and not corpus.has_validation:
        raise DataError(
            f"{corpus.source} has {scan.n_examples} examples of prompt and completion among "
            f"{scan.n_documents} documents, and val is tail, which cuts each in two; use "
            "val=hash with 6 documents or more, or name those of validation: a folder with "
            "train.jsonl and valid.jsonl"
        )


def _notes(scan: Scan, rule: str, changed: int) -> list[str]:
    n = scan.n_documents
    notes = (
        (changed,
         f"the tokenizer changes the text of {changed} of {n} documents: the model learns and "
         "writes the changed text; bits per byte are of the original bytes"),
        (scan.n_examples,
         f"{scan.n_examples} of {n} documents are examples of prompt and completion, or "
         "conversations: every loss, also on validation text, counts only completions and answers "
         "(--loss-on all counts everything)"),
        (rule == split.SAME,
         "no example is held out of fewer than 6, or of equal ones, so evaluations are of the "
         "training text and say nothing about other text; use more examples, or a folder with "
         "train.jsonl and valid.jsonl"),
    )  # fmt: skip
    return [note for applies, note in notes if applies]


def _pieces(corpus: Corpus, chosen: Split, scan: Scan) -> Iterator[tuple[str, bool, bytes]]:
    """Yield (file, is validation, text) of a corpus's parts; `scan` counts its documents."""
    for turn in range(chosen.n_turns):
        first = 0
        for part in corpus.parts:
            for document in part.read():
                if not turn:
                    scan.add(document, validation=part.validation)
                own = split.parts(document, chosen.cut)
                for validation, text in chosen.of(own, first, turn):
                    yield part.name, validation, text
                    if chosen.rule == split.SAME:
                        yield part.name, True, text
                first += len(own)


# -- the cache -------------------------------------------------------------------------------------


MAX_BYTES, MAX_SHARE = 10e9, 0.05  # of all stored tokens: bytes, or a share of a large disk
MAX_TEXTS = 500
_NAME = re.compile("[0-9a-f]{32}(.part|.old)?")


@dataclass(frozen=True)
class Stored:
    """The cached tokens of a text, or the remains of a killed process."""

    path: Path
    source: str  # the sources of the corpus, a line each; empty if it cannot be read
    tokenizer: str
    n_bytes: int
    used_s: float  # last use, in seconds since 1970

    @classmethod
    def of(cls, path: Path) -> "Stored":
        """Describe a folder of the cache."""
        record, used_s = path / _RECORD, path.lstat().st_mtime
        source = tokenizer = ""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            fields = plain_json.read(record)
            source, tokenizer = str(fields["source"]), str(fields["tokenizer"])
            used_s = record.stat().st_mtime
        return cls(path, source, tokenizer, disk_bytes(path), used_s)

    @property
    def is_in_use(self) -> bool:
        """Whether a living process has it open."""
        return is_in_use(self.path / "train.bin")

    def remove(self) -> bool:
        """Remove it, unless a process writes it or has it open; return whether it is gone."""
        name = self.path.name.partition(".")[0]
        with contextlib.suppress(BlockingIOError), _locked(self.path.parent, name, wait=False):
            if not self.is_in_use:
                remove(self.path)
                (self.path.parent / "locks" / name).unlink(missing_ok=True)
        return not os.path.lexists(self.path)


def max_bytes(cache: Path) -> int:
    """Return the size limit of the cache: `MAX_BYTES`, or `MAX_SHARE` of a large disk."""
    size = shutil.disk_usage(cache).total if cache.is_dir() else 0
    return int(max(MAX_BYTES, MAX_SHARE * size))


def stored_texts(cache: Path) -> list[Stored]:
    """Return the cached tokens, the most recently used first."""
    paths = [path for path in cache.iterdir() if _NAME.fullmatch(path.name)]
    every = list[Stored]()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            every.append(Stored.of(path))
    return sorted(every, key=lambda one: one.used_s, reverse=True)


def _shrink(cache: Path, kept: Path) -> list[Stored]:
    every, limit = stored_texts(cache), max_bytes(cache)
    total, removed = sum(one.n_bytes for one in every), list[Stored]()
    for one in reversed(every):
        is_full = total > limit or len(every) - len(removed) > MAX_TEXTS
        if is_full and one.path != kept and one.remove():
            removed.append(one)
            total -= one.n_bytes
    return removed


def _cache() -> Path:
    cache = user_cache_directory()
    try:
        return own_directory(cache)
    except OSError as error:
        raise _bad_cache(cache, f"cannot be written: {darwin.reason(error)}") from error


@contextlib.contextmanager
def _locked(cache: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    path, kind = cache / "locks" / name, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            lock = open(path, "w", opener=inside(path.parent))
        except OSError as error:
            raise _bad_cache(cache, f"cannot be written: {darwin.reason(error)}") from error
        with lock, lock_file(lock, path, kind):
            with contextlib.suppress(OSError):  # a disk may keep no modes
                os.fchmod(lock.fileno(), 0o600)
            # `Stored.remove` may have removed the file since it was opened.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return


def _bad_cache(cache: Path, why: str) -> EnvironmentLacks:
    return EnvironmentLacks(f"{cache}: {why}; set XDG_CACHE_HOME to a folder on another disk")


def _stored(
    target: Path, key: str
) -> tuple[tuple[TokenFile, TokenFile], Tokenizer, Mapping[str, float]] | None:
    """Return both token files, tokenizer and baselines; None if absent or damaged."""
    try:
        record = plain_json.read(target / _RECORD)
        baselines = {name: float(bits) for name, bits in record["baselines"].items()}
        tokenizer = tokenizers.load(target)
        train, val = (TokenFile.open(target / f"{split}.bin") for split in ("train", "val"))
        own = {file.header["tokenizer_sha256"] for file in (train, val)} == {tokenizer.sha256}
        is_whole = record["key"] == key and own
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if not is_whole:
        return None
    train.hold()
    with contextlib.suppress(OSError):  # a disk may keep no modes
        os.utime(target / _RECORD)  # its last use
        restrict(target)
    return (train, val), tokenizer, baselines


def _write(
    target: Path, key: str, corpus: Corpus, scan: Scan, chosen: Split, spec: str, show: Show
) -> None:
    doing, n_bytes = f"preparing {corpus.source}", scan.n_bytes

    def training_text() -> Iterator[bytes]:
        for _, validation, text in _pieces(corpus, chosen, Scan(split.WHOLE)):
            show(lambda: f"training the vocabulary {spec} on {format_bytes(n_bytes)} of text")
            if not validation:
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
        validation = _write_tokens(part, corpus, scan, chosen, tokenizer, show)
        baselines = compressors.bits_per_byte(validation)
        source = "\n".join(dict.fromkeys(one.source for one in corpus.parts))
        record = {"key": key, "source": source, "tokenizer": spec, "baselines": baselines}
        write_synced(part / _RECORD, json.dumps(record, indent=1).encode())
        with contextlib.suppress(OSError):
            restrict(part)


def _write_tokens(
    part: Path, corpus: Corpus, scan: Scan, chosen: Split, tokenizer: Tokenizer, show: Show
) -> bytes:
    """Write both token files; return the beginning of the validation text."""
    files = [part / f"{split}.bin" for split in ("train", "val")]
    train, val = (
        TokenWriter(file, tokenizer, split=file.stem, source=corpus.source) for file in files
    )
    again, begin = Scan(split.WHOLE), b""

    def progress() -> str:
        return f"tokenizing {again.n_bytes / scan.n_bytes:.0%} of {format_bytes(scan.n_bytes)}"

    with train, val:
        for _, validation, text in _pieces(corpus, chosen, again):
            show(progress)
            (val if validation else train).add(text)
            if validation and len(begin) < compressors.MAX_BYTES:
                begin += text
    if again.sha256 != scan.sha256:
        raise DataError(f"{corpus.source} changed while it was read; try again")
    for file, name in zip(files, ("training", "validation"), strict=True):
        if not file.stat().st_size:
            raise DataError(
                f"{corpus.source} is too short: no {name} text{corpus.in_brackets()}; use more text"
            )
    return begin
