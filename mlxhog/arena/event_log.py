"""The log of a recorded run: what its workers did, as far as no configuration says it.

    RUN/replay/config.yaml     its configuration, resolved
    RUN/replay/header.json     what the run was: workers, versions, digests of layout, text, weights
    RUN/replay/worker-N.log    what the workers in slot N did, in the order in which they did it
    RUN/replay/end.json        what it came to; missing where the supervisor was killed

A log of a worker is a sequence of records, appended and never changed:

    u32   bytes of the payload
    u32   CRC-32 of kind and payload
    u8    kind, see `Kind`
    ...   payload: pieces, each with its length in front (u32)

    kind    pieces
    BEGIN   JSON: backend, threads and kernels of a worker that starts in this slot
    STEP    `Numbers`, u8 whether it was applied, turns, sums of what was read, SHA-256 or nothing
    TORN    `Numbers`, u8 flags, turns, floats of the access it died in, its private state
    DIED    nothing: it died between two steps

Turns are the order of accesses to shared parameters (`metal/native/updates/turns.h`): of a STEP the
accesses by others since the worker's own last one under the same lock, of a TORN the turns
themselves. They are nearly equal and compress well.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import MlxhogError, RunError
from mlxhog.files import plain_json
from mlxhog.files.durable import append_all, disk_errors, replace_file

FOLDER: Final = "replay"
FORMAT: Final = 1
CHECK_EVERY: Final = 64
"""Steps of a worker from one SHA-256 of the weights that it reads to the next."""

UInt32 = NDArray[np.uint32]
_HEAD = struct.Struct("<IIB")
_LENGTH = struct.Struct("<I")
_NUMBERS = struct.Struct("<QIQQIdQQdd")
NUMBERS_BYTES: Final = _NUMBERS.size
WRITING, UNFINISHED = 1, 2  # flags of a torn step


class Kind(IntEnum):
    """What a record says; the module's table has the pieces of each."""

    BEGIN = 1
    STEP = 2
    TORN = 3
    DIED = 4


class Numbers(NamedTuple):
    """What a step depends on beside its turns.

    Attributes:
        number: of the step in its process, from 0.
        epoch: of its batch.
        ticket: of its batch.
        version_read: updates before its read; it says where accesses begin.
        workers: in the run, as far as the worker knew.
        horizon: steps by others that its read looked ahead.
        opt_step: updates that have gone into its private state, this one included.
        shared_step: the same of state that all share.
        lr: step size.
        norm: of the gradient, before clipping; NaN where none was written.
    """

    number: int
    epoch: int
    ticket: int
    version_read: int
    workers: int
    horizon: float
    opt_step: int = 0
    shared_step: int = 0
    lr: float = 0.0
    norm: float = float("nan")

    def pack(self) -> bytes:
        """As bytes of a fixed length."""
        return _NUMBERS.pack(*self)

    @classmethod
    def unpack(cls, content: bytes | memoryview) -> Numbers:
        """What `pack` wrote."""
        return cls(*_NUMBERS.unpack(content))


@dataclass(frozen=True)
class Begin:
    """A worker starts in this slot."""

    backend: str
    threads: int
    kernels: str


@dataclass(frozen=True)
class Step:
    """A step that its worker lived to end.

    Attributes:
        numbers: of the step.
        applied: whether its gradient was written; one that is not finite or too late is not.
        turns: gap of each access, (n,) uint32.
        sums: of the weights that it read, one of each stripe, (stripes,) uint32.
        sha256: of those weights, every `CHECK_EVERY` steps; else empty.
    """

    numbers: Numbers
    applied: bool
    turns: UInt32
    sums: UInt32
    sha256: bytes = b""


@dataclass(frozen=True)
class Torn:
    """A step in which its worker died.

    Attributes:
        numbers: of the step, as far as it had come.
        writing: whether it had begun to write.
        unfinished: whether it may have died in the midst of its last access.
        turns: turn of each access, (n,) uint32.
        floats: what that access left of shared arrays, in their order, float32.
        private: the worker's private state afterwards, segment by segment, float32.
    """

    numbers: Numbers
    writing: bool
    unfinished: bool
    turns: UInt32
    floats: bytes = b""
    private: bytes = b""


@dataclass(frozen=True)
class Died:
    """Its worker died between two steps."""


Record = Begin | Step | Torn | Died


def encode(record: Record) -> bytes:
    """A record as it stands in a log."""
    if isinstance(record, Begin):
        return _framed(Kind.BEGIN, plain_json.dumps(vars(record)))
    if isinstance(record, Died):
        return _framed(Kind.DIED)
    numbers = record.numbers.pack()
    if isinstance(record, Torn):
        flags = WRITING * record.writing | UNFINISHED * record.unfinished
        arrays = (record.turns.astype("<u4").tobytes(), record.floats, record.private)
        return _framed(Kind.TORN, numbers, bytes([flags]), *(zlib.compress(a, 1) for a in arrays))
    most = int(record.turns.max(initial=0))
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    turns = bytes([width]) + zlib.compress(record.turns.astype(f"<u{width}").tobytes(), 1)
    sums = record.sums.astype("<u4").tobytes()
    return _framed(Kind.STEP, numbers, bytes([record.applied]), turns, sums, record.sha256)


def _framed(kind: Kind, *pieces: bytes) -> bytes:
    payload = b"".join(part for piece in pieces for part in (_LENGTH.pack(len(piece)), piece))
    return _HEAD.pack(len(payload), zlib.crc32(payload, kind), kind) + payload


def read(path: Path) -> Iterator[Record]:
    """The records of one worker's log.

    Raises:
        RunError: the log is missing, cut or damaged; the message says where.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"the log {path} cannot be read: {error.strerror}") from error
    at = 0
    while at < len(content):
        head = content[at : at + _HEAD.size]
        size, crc, kind = _HEAD.unpack(head) if len(head) == _HEAD.size else (1 << 32, 0, 0)
        payload = content[at + _HEAD.size : at + _HEAD.size + size]
        if len(payload) < size:
            raise RunError(
                f"the log {path} is cut at byte {at} of {len(content)}: its last record is not "
                "whole; copy the run's folder again, or record another run"
            )
        if zlib.crc32(payload, kind) != crc:
            raise RunError(
                f"the log {path} is damaged: the record at byte {at} has another checksum than "
                "it was written with; copy the run's folder again, or record another run"
            )
        yield _decoded(path, at, kind, payload)
        at += _HEAD.size + size


def _decoded(path: Path, at: int, kind: int, payload: bytes) -> Record:
    pieces, here = [], 0
    while here < len(payload):
        (size,) = _LENGTH.unpack_from(payload, here)
        pieces.append(payload[here + _LENGTH.size : here + _LENGTH.size + size])
        here += _LENGTH.size + size
    if kind == Kind.BEGIN:
        return Begin(**plain_json.loads(pieces[0]))
    if kind == Kind.DIED:
        return Died()
    if kind not in (Kind.STEP, Kind.TORN):
        raise RunError(
            f"the log {path} has a record of kind {kind} at byte {at}, which this mlxhog does not "
            "know; replay it with the version that recorded it"
        )
    numbers, flags = Numbers.unpack(pieces[0]), pieces[1][0]
    if kind == Kind.TORN:
        turns, floats, private = (zlib.decompress(piece) for piece in pieces[2:])
        known = np.frombuffer(turns, "<u4").astype(np.uint32)
        return Torn(
            numbers, bool(flags & WRITING), bool(flags & UNFINISHED), known, floats, private
        )
    gaps = np.frombuffer(zlib.decompress(pieces[2][1:]), f"<u{pieces[2][0]}").astype(np.uint32)
    sums = np.frombuffer(pieces[3], "<u4").astype(np.uint32)
    return Step(numbers, bool(flags), gaps, sums, pieces[4])


def worker_path(directory: Path, slot: int) -> Path:
    """The log of one slot of a run."""
    return directory / FOLDER / f"worker-{slot}.log"


def append(path: Path, record: Record) -> None:
    """Append a record to a log that nobody else writes now.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    with disk_errors(f"writing {path}"), path.open("ab", buffering=0) as file:
        append_all(file.fileno(), encode(record))


class Log:
    """A worker's own log, open while it appends to it.

    Attributes:
        fd: of the file.
        size: where its next record begins.
    """

    def __init__(self, path: Path) -> None:
        """Open a log that has the record of its beginning.

        Raises:
            EnvironmentLacks: the system refuses.
        """
        self.path = path
        with disk_errors(f"writing {path}"):
            self.fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            self.size = os.fstat(self.fd).st_size

    def append(self, record: Record) -> None:
        """Append a record.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses.
            MlxhogError: a part of it was written.
        """
        content = encode(record)
        with disk_errors(f"writing {self.path}"):
            written = os.write(self.fd, content)
        if written < len(content):
            raise MlxhogError(f"{self.path} took {written} of {len(content)} bytes: disk full?")
        self.size += written


def cut(path: Path, size: int) -> None:
    """Drop what a log has from byte `size` on, such as a part of a record.

    Raises:
        EnvironmentLacks: the system refuses.
    """
    with disk_errors(f"writing {path}"):
        os.truncate(path, size)


def write_json(directory: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write `header` or `end` of a run's log.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    path = directory / FOLDER / f"{name}.json"
    with disk_errors(f"writing {path}"):
        replace_file(path, plain_json.dumps(values, indent=1) + b"\n")


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        RunError: the run was not recorded, has not ended, or the file is damaged.
    """
    path = directory / FOLDER / f"{name}.json"
    try:
        values = plain_json.loads(path.read_bytes())
        if not isinstance(values, dict) or values["format"] != FORMAT:
            raise ValueError(f"wanted a log of format {FORMAT}")
    except FileNotFoundError:
        if name == "header":
            raise RunError(
                f"the run {directory} was not recorded; record one with: mlxhog train "
                "--determinism record"
            ) from None
        raise RunError(
            f"the log of {directory} has no end: the run still trains, or was killed with its "
            "supervisor; only a run that has ended can be replayed"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); replay it with the version that recorded it, or "
            "copy the run's folder again"
        ) from error
    return values
