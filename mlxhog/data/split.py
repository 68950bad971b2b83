"""The validation split: documents, and parts of long ones, that are not trained on.

hash K/96 of CUT   documents whose digest, as a fraction, is below K/96; those above CUT bytes are
                   cut into parts that are chosen like documents. K is 8, or else the next number
                   with an even share; CUT is 64 KiB, and less for a short text
tail               the last 8 % of every document; also for a text too short for the other rule
predefined         documents 5, 17, 29, ... of the bundled corpus
given              files with names of validation text (`validation_set.by_name`), or a split of
                   a data set

A digest depends on the content alone, so a new file moves no document. `KnownText` is the text of
an earlier run, whose documents keep their side, edited ones of its files included.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import reading
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.paths import names_in_common_folder
from mlxhog.data.records import Example
from mlxhog.errors import DataError, did_you_mean, message_of

RULES = ("hash", "tail")
PREDEFINED, GIVEN, SAME = "predefined", "given", "training examples"
"""`SAME` is the rule for few examples: evaluations use the training text."""
FILE = "documents.npz"
TAIL, WHOLE = 0, 1 << 62  # as a size of parts: two of each document, and documents as they are
CUTS = (65_536, 4096, 1024, 256)
_GRID, _CELL = 96, 8  # thresholds, and the usual one: a twelfth
_MANY, _POINT = 300, 0.01  # from so many documents on the share is as exact
_FEW = 5  # of so many documents none is held out whole
_MIN_SHARE, _MAX_SHARE = 1 / 24, 1 / 6  # share of fewer documents; and of the longest one
_KEPT_BYTES = 1 << 21  # a text up to this size may be cut again
_SAMPLE_BYTES = 65_536
_TAIL = 0.08
_MAX_TURNS = 255
_MAX_COMPARED = 5000  # parts of a file between equal ends; of more the place counts
MAX_FILE_BYTES = 1 << 31  # of `FILE`, also unpacked: 10 bytes for each of 200 million parts
_TYPES = "uint64 bool uint8".split()


@dataclass
class Scan:
    """Counts of a text's documents, and a digest of each part, in order.

    Copies share their parts: `undo` of the older one drops what was added to a newer one.
    """

    cut: int = CUTS[0]  # size of parts
    n_documents: int = 0
    n_bytes: int = 0
    n_examples: int = 0
    n_given: int = 0  # documents of the corpus's own validation text, its last ones
    given_bytes: int = 0
    sample: bytes = b""  # the begin of the text
    digests: array[int] = field(default_factory=lambda: array("Q"))  # of parts
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))  # of documents, in parts
    texts: list[bytes] = field(default_factory=list)  # the first documents, see `_KEPT_BYTES`
    files: list[tuple[str, int]] = field(default_factory=list)  # name, end in documents
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, document: bytes, *, validation: bool = False) -> None:
        """Count a document, which may be in a validation split of the corpus."""
        size = len(document)
        if isinstance(document, Example):
            self.n_examples += 1
            lengths = " ".join(map(str, document.lengths[:-1]))
            self._digest.update(f"\0prompt {lengths}\0".encode())
        self._digest.update(b"\0" * (self.n_documents > 0))
        self._digest.update(document)
        self._add_parts(document)
        self.n_documents += 1
        self.n_bytes += size
        if self.n_bytes <= _KEPT_BYTES:
            self.texts.append(document)
        self.n_given += validation
        self.given_bytes += validation * size
        if len(self.sample) < _SAMPLE_BYTES:
            self.sample += document[:_SAMPLE_BYTES]

    def _add_parts(self, document: bytes) -> None:
        for part in parts(document, self.cut):
            digest = hashlib.blake2b(part, digest_size=8).digest()
            self.digests.append(int.from_bytes(digest, "little"))
            self.sizes.append(len(part))
        self.ends.append(len(self.digests))

    def copy(self) -> Scan:
        """Return a copy that can count more documents."""
        return replace(self, _digest=self._digest.copy())

    def undo(self) -> None:
        """Drop the parts that a copy has counted since."""
        del self.ends[self.n_documents :], self.texts[self.n_documents :]
        del self.digests[(n := self.ends[-1] if self.ends else 0) :], self.sizes[n:]

    def cut_again(self, size: int) -> None:
        """Cut the documents, all of which are kept, into parts of another size."""
        self.cut, self.digests, self.sizes, self.ends = size, array("Q"), array("Q"), array("Q")
        for one in self.texts:
            self._add_parts(one)

    @property
    def sha256(self) -> str:
        """Digest of the documents, joined by a zero byte, and of the lengths of examples."""
        return str(self._digest.hexdigest())


def parts(document: bytes, size: int) -> list[bytes]:
    """Cut a document into parts of about `size` bytes, in characters nowhere; examples are whole.

    Each part but the last has at least `size` bytes, and more text at the end moves no cut.
    """
    if isinstance(document, Example) or (size and len(document) <= size):
        return [document]
    if size == TAIL:
        end = _after_space(document, len(document) - int(_TAIL * len(document)))
        return [part for part in (document[:end], document[end:]) if part]
    cuts = [0]
    while len(document) - cuts[-1] > size:
        cuts.append(_after_space(document, cuts[-1] + size))
    return [part for a, b in zip(cuts, [*cuts[1:], None], strict=True) if (part := document[a:b])]


def _after_space(document: bytes, at: int) -> int:
    """Return a place behind a space or line end near another one, never in a character."""
    spaces = (document.find(space, at, at + 256) for space in (b"\n", b" "))
    after = min((one + 1 for one in spaces if one >= 0), default=at)
    while after < len(document) and document[after] & 0xC0 == 0x80:
        after += 1
    return after


@dataclass(frozen=True)
class Split:
    """The side of every part of a text, in reading order.

    `turn` is 0, or a later number for text that a resumed run added: a run reads its text in the
    order of turns, so later text moves nothing.
    """

    rule: str
    cell: int  # threshold of digests, in `_GRID`
    cut: int  # size of parts
    validation: NDArray[np.bool_]  # (parts,)
    turn: NDArray[np.uint8]  # (parts,)
    seen: float = 0.0  # share of the validation text that is known training text

    @property
    def key(self) -> str:
        """Digest of the split."""
        arrays = np.packbits(self.validation).tobytes() + self.turn.tobytes() * bool(
            self.n_turns > 1
        )
        return f"{self.rule}|{hashlib.sha256(arrays).hexdigest()}"

    @property
    def n_turns(self) -> int:
        """Number of times that the text is read."""
        return int(self.turn.max(initial=0)) + 1

    def of(self, parts: Sequence[bytes], first: int, turn: int) -> Iterator[tuple[bool, bytes]]:
        """Yield (is validation, text) of a document's parts in a turn, from number `first` on.

        Neighboring parts of a side are joined.
        """
        own = (bool(self.validation[k]) for k in range(first, first + len(parts)))
        due = (self.turn[k] == turn for k in range(first, first + len(parts)))
        sides = zip(own, due, parts, strict=True)
        for (validation, is_due), together in groupby(sides, key=lambda one: one[:2]):
            texts = [part for _, _, part in together]
            if is_due:
                yield validation, texts[0] if len(texts) == 1 else b"".join(texts)


def cut_of(val: str, *, predefined: bool) -> int:
    """Return the size of parts for the scan of a text; DataError if `val` is no rule."""
    if val not in RULES:
        raise DataError(
            f"no validation split {val!r}; expected one of {', '.join(RULES)}"
            + did_you_mean(val, RULES)
        )
    return TAIL if val == "tail" else WHOLE if predefined else CUTS[0]


def choose(
    val: str, scan: Scan, *, given: bool, predefined: bool, known: KnownText | None,
    resumes: bool = False,
) -> Split:  # fmt: skip
    """Return the split of a scanned text, which may have its own validation text (`given`).

    The scan gets the parts of the split. `known` parts, and edited ones in files of the same name,
    keep their side; in a run that `resumes` other parts have a later turn.
    """
    if known is None:
        return _fresh(val, scan, given=given, predefined=predefined)
    digests, sizes = np.array(scan.digests, np.uint64), np.array(scan.sizes, np.float64)
    is_known, sides = known.look_up(digests)
    edited = known.edited(scan, digests)
    is_other = not (is_known.any() or edited)
    was_trained = is_known & ~sides
    was_trained[[k for k, side in edited.items() if not side]] = True
    if given or predefined or is_other:
        split = _fresh(val, scan, given=given, predefined=predefined)
    elif scan.cut == TAIL:
        split = _tails(scan)
    else:
        own = known.split
        is_usual = len(known.digests) < _MANY or not own.cell  # that of few parts fits these alone
        split = _below(_CELL if is_usual else own.cell, scan)
        if own.cell:
            split = replace(split, rule=own.rule, cell=own.cell)
    if split.rule not in (SAME, GIVEN) and not is_other:  # files that are named stay
        validation = split.validation.copy()
        validation[list(edited)] = list(edited.values())
        validation = np.where(is_known, sides, validation)
        if not validation.any() or validation.all():  # all of it is known training text
            of_all = float(sizes @ was_trained / sizes.sum())
            return replace(_fresh(val, scan, given=False, predefined=False), seen=of_all)
        split = replace(split, validation=validation)
    if scan.cut != known.split.cut or not split.validation.any():
        return split
    seen = sizes @ (split.validation & was_trained) / (sizes @ split.validation)
    split = replace(split, seen=float(seen))
    return replace(split, turn=known.turns(digests)) if resumes else split


def _fresh(val: str, scan: Scan, *, given: bool, predefined: bool) -> Split:
    n = scan.ends[-1]
    if given:
        first = ([0, *scan.ends])[scan.n_documents - scan.n_given]
        return _split(GIVEN, 0, scan, np.arange(n) >= first)
    if scan.n_examples and scan.n_documents <= _FEW:
        return _split(SAME, 0, scan, np.zeros(n, bool))
    if val == "hash":
        if predefined:
            return _split(PREDEFINED, _CELL, scan, is_predefined(np.arange(n)))
        is_short = scan.n_bytes <= _KEPT_BYTES
        for size in CUTS if is_short and not scan.n_examples else (scan.cut,):
            if scan.cut != size:
                scan.cut_again(size)
            if cell := _cell_of(scan):
                return _below(cell, scan)
        if scan.n_examples or len(scan.sizes) > _FEW:
            if cell := _cell_of(scan, at_any_share=True):
                return _below(cell, scan)
        if scan.n_examples:
            return _split(SAME, 0, scan, np.zeros(n, bool))
        if not is_short:  # all documents are equal
            return _below(_CELL, scan)
        scan.cut_again(TAIL)
    return _tails(scan)


def _tails(scan: Scan) -> Split:
    ends = np.array(scan.ends, np.int64)
    validation = np.zeros(scan.ends[-1], bool)
    validation[ends - 1] = np.diff(ends, prepend=0) == 2
    return _split("tail", 0, scan, validation)


def is_predefined(document: Any) -> Any:
    """Whether a document of the bundled corpus is validation text, by number."""
    return document % 12 == 5


def _split(rule: str, cell: int, scan: Scan, validation: NDArray[np.bool_]) -> Split:
    return Split(rule, cell, scan.cut, validation, np.zeros(len(validation), np.uint8))


def _cells(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    return ((digests >> np.uint64(32)) * np.uint64(_GRID) >> np.uint64(32)).astype(np.int64)


def _below(cell: int, scan: Scan) -> Split:
    validation = _cells(np.array(scan.digests, np.uint64)) < cell
    return _split(f"hash {cell}/{_GRID} of {scan.cut}", cell, scan, validation)


def _cell_of(scan: Scan, *, at_any_share: bool = False) -> int | None:
    """Return the threshold with a good share nearest to the usual one; None without one.

    Thresholds are few, so that a new file hardly ever changes the threshold.
    """
    sizes = np.ones(len(scan.sizes)) if at_any_share else np.array(scan.sizes, np.float64)
    volumes = np.bincount(_cells(np.array(scan.digests, np.uint64)), sizes, minlength=_GRID)
    shares = np.cumsum(volumes)[:-1] / sizes.sum()
    thresholds = np.argsort(np.abs(np.arange(_GRID - 1) - (_CELL - 1)), kind="stable")
    off = np.abs(shares - _CELL / _GRID)
    if len(sizes) >= _MANY and (exact := [k for k in thresholds if off[k] <= _POINT]):
        return int(exact[0]) + 1
    if at_any_share:
        thresholds = thresholds[np.argsort(off[thresholds], kind="stable")]
        good = [k for k in thresholds if 0 < volumes[: k + 1].sum() < volumes.sum()]
    else:
        is_even = sizes.max() <= (_MAX_SHARE + 1e-9) * sizes.sum()
        good = [k for k in thresholds if is_even and _MIN_SHARE <= shares[k] <= _MAX_SHARE + 1e-9]
        if len(sizes) >= _MANY:
            good.sort(key=lambda k: off[k])
    return int(good[0]) + 1 if good else None


# -- the text of an earlier run --------------------------------------------------------------------


def _n_equal(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> int:
    """Return the number of equal first elements."""
    n = min(len(one), len(other))
    return int(np.argmin(np.append(one[:n] == other[:n], False)))


@dataclass(frozen=True)
class KnownText:
    """The text of a run, by the digests of its parts, in the run's folder.

    `others` are digests of earlier texts of the run, or of the run whose weights it began with: 1
    is validation text, 0 training text.
    """

    split: Split
    digests: NDArray[np.uint64]  # (parts,)
    files: list[tuple[str, int]]  # name, end in parts
    others: Mapping[int, int]
    skipped: frozenset[str]  # files that a note has named

    @classmethod
    def of(
        cls, scan: Scan, split: Split, known: KnownText | None, skipped: Iterable[str] = ()
    ) -> Self:
        """Return the text of a scan with all text that was known before."""
        digests, ends = np.array(scan.digests, np.uint64), [0, *scan.ends]
        others = {} if known is None else known.sides()
        for digest in digests.tolist():
            others.pop(digest, None)
        files = [(name, ends[end]) for name, end in scan.files]
        return cls(split, digests, files, others, frozenset(skipped))

    @property
    def name(self) -> str:
        """The split's rule, and a digest of the sides where edited text departs from it."""
        split, by_rule = self.split, _cells(self.digests) < self.split.cell
        is_by_rule = not split.cell or np.array_equal(split.validation, by_rule)
        return split.rule if is_by_rule else f"{split.rule} {split.key[-8:]}"

    def sides(self) -> dict[int, int]:
        """Return the side of every known part: 1 is validation text."""
        own = zip(self.digests.tolist(), map(int, self.split.validation.tolist()), strict=True)
        return {**self.others, **dict(own)}

    def look_up(self, digests: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which parts are known, and which of these are validation text."""
        sides = self.sides()
        found = np.array([sides.get(one, -1) for one in digests.tolist()], np.int8)
        return found >= 0, found == 1

    def turns(self, digests: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the turns of the parts of the run's present text; new ones have the next."""
        new, turn = self.split.n_turns, list[int]()
        left = [deque(self.digests[self.split.turn == k].tolist()) for k in range(new)]
        for digest in digests.tolist():  # a copy of a known part may be new
            turns = (k for k, own in enumerate(left) if own and own[0] == digest)
            turn.append(next(turns, new))
            if turn[-1] < new:
                left[turn[-1]].popleft()
        is_grown = not any(left) and new < _MAX_TURNS
        return np.array(turn if is_grown else [0] * len(turn), np.uint8)

    def has_any(self, scan: Scan) -> bool:
        """Whether a scan has a known part or an edited one."""
        known = not self.sides().keys().isdisjoint(scan.digests)
        return known or bool(self.edited(scan, np.array(scan.digests, np.uint64)))

    def added(self, scan: Scan, chosen: Split) -> dict[str, int] | None:
        """Return the numbers of parts and bytes that are new in the run's text, if any."""
        sides = self.sides()
        new = [k for k, one in enumerate(scan.digests) if one not in sides]
        if not new or scan.cut != self.split.cut:
            return None
        validation = int(chosen.validation[new].sum())
        n_bytes = sum(scan.sizes[k] for k in new)
        return {"documents": len(new), "val_documents": validation, "bytes": n_bytes}

    def kept(self, scan: Scan) -> float:
        """Return the share of this text in a scan, edited parts included."""
        digests = np.array(scan.digests, np.uint64)
        here = int(np.isin(self.digests, digests).sum()) + len(self.edited(scan, digests))
        return here / max(1, len(self.digests))

    def edited(self, scan: Scan, digests: NDArray[np.uint64]) -> dict[int, bool]:
        """Return the sides of unknown parts in place of missing ones in a file of the same name.

        If no file is where it was, names in the common folder count.
        """
        there, here = ([name for name, _ in files] for files in (self.files, scan.files))
        if not any(os.path.isabs(name) for name in {*there} & {*here}):  # the text was moved
            of_old, of_new = names_in_common_folder(there), names_in_common_folder(here)
            there, here = [of_old[name] for name in there], [of_new[name] for name in here]
        old, first = dict[str, tuple[int, int]](), 0
        for name, (_, end) in zip(there, self.files, strict=True):
            old[name], first = (first, end), end
        is_new, is_missing = ~self.look_up(digests)[0], ~np.isin(self.digests, digests)
        edited, end, ends = dict[int, bool](), 0, [0, *scan.ends]
        for name, (_, document) in zip(here, scan.files, strict=True):
            (was, was_end), at, end = old.get(name, (0, 0)), end, ends[document]
            n = _n_equal(self.digests[was:was_end], digests[at:end])
            was, at = was + n, at + n
            n = _n_equal(self.digests[was:was_end][::-1], digests[at:end][::-1])
            before, now = self.digests[was : was_end - n].tolist(), digests[at : end - n].tolist()
            codes: list[Any] = [("replace", 0, len(before), 0, len(now))]
            if before and max(len(before), len(now)) <= _MAX_COMPARED:
                codes = SequenceMatcher(None, before, now, False).get_opcodes()
            for kind, a, b, i, j in codes:
                if kind == "replace":  # parts beyond the old ones have no side yet
                    places = zip(range(was + a, was + b), range(at + i, at + j), strict=False)
                    both = ((k, m) for k, m in places if is_missing[k] and is_new[m])
                    edited |= {m: bool(self.split.validation[k]) for k, m in both}
        return edited

    def write(self, folder: Path) -> None:
        """Store it in a run's folder."""
        content, split = io.BytesIO(), self.split
        about = json.dumps(
            [split.rule, split.cell, split.cut, self.files, *sorted(self.skipped)]
        ).encode()
        others = np.array([*self.others], np.uint64), np.array([*self.others.values()], np.int8)
        np.savez_compressed(
            content, about=np.frombuffer(about, np.uint8), digests=self.digests,
            validation=split.validation, turn=split.turn, others=others[0], sides=others[1],
        )  # fmt: skip
        with disk_errors(f"writing {folder / FILE}"):
            replace_file(folder / FILE, content.getvalue())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the text of the run in a folder; None if it has none.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / FILE
        try:
            content = reading.read_small(path, most=MAX_FILE_BYTES, refusal=DataError)
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                if sum(one.file_size for one in file.zip.infolist()) > MAX_FILE_BYTES:
                    raise ValueError("it unpacks to too many bytes")
                rule, cell, cut, files, *skipped = json.loads(bytes(file["about"]))
                split = Split(str(rule), int(cell), int(cut), file["validation"], file["turn"])
                others = dict(zip(file["others"].tolist(), file["sides"].tolist(), strict=True))
                files = [(str(a), int(b)) for a, b in files]
                known = cls(split, file["digests"], files, others, frozenset(map(str, skipped)))
            arrays = (known.digests, split.validation, split.turn)
            if [str(one.dtype) for one in arrays] != _TYPES or len(
                {one.shape for one in arrays}
            ) > 1:
                raise ValueError("its arrays are of different documents")
            return known
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(
                f"{path} is damaged: {message_of(error)}; restore it, or begin a new run"
            ) from error
