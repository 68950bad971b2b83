"""The log of a recorded run: all that a replay needs beside the configuration.

    RUN/replay/config.yaml     its configuration, resolved
    RUN/replay/header.json     its workers and versions, digests of layout, text and weights
    RUN/replay/worker-N.log    events of the workers in slot N, in their order
    RUN/replay/end.json        its result; missing if the supervisor was killed

This module has the logs of workers, `mlxhog.training.recording` the two JSON files.

A log of a worker is a sequence of records, appended and never changed:

    u32   bytes of the payload
    u32   CRC-32 of kind and payload
    u8    kind, see `Kind`
    ...   payload: pieces, each with its length in front (u32)

    kind    pieces
    BEGIN   JSON: backend, threads and kernels of a worker that starts in this slot
    STEP    `Numbers`, u8 whether it was applied, gaps of accesses, sums of the read weights,
            SHA-256 or empty
    TORN    `Numbers`, u8 flags, accesses, floats of the access it died in, its private state
    DIED    none: it died between two steps

Logs are copied and sent to others, so each record is checked before it is used: a record that the
run cannot have written is an error in words; unpacking takes at most the memory that the run had.

Accesses to shared parameters are numbered under each lock (`metal/native/updates/turns.h` calls the
numbers turns). A TORN has the numbers of its accesses, a STEP their gaps: accesses by others since
the worker's own last one under the same lock. They are nearly equal and compress well.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import RunError, message_of, shown
from mlxhog.files import plain_json, reading
from mlxhog.files.durable import append_all, disk_errors

FOLDER: Final = "replay"
FORMAT: Final = 1
CHECK_EVERY: Final = 64
"""A worker logs a SHA-256 of the weights that it reads once in this number of steps."""

MOST_COUNT: Final = 1 << 40
"""Limit for steps, epochs and updates: more than any run has, and small enough for 64-bit sums."""

UInt32 = NDArray[np.uint32]
_HEAD = struct.Struct("<IIB")
_LENGTH = struct.Struct("<I")
_NUMBERS = struct.Struct("<QIQQIdQQdd")
NUMBERS_BYTES: Final = _NUMBERS.size
WRITING, UNFINISHED = 1, 2  # flags of a torn step


class Kind(IntEnum):
    """The kind of a record; the module's table has the pieces of each."""

    BEGIN = 1
    STEP = 2
    TORN = 3
    DIED = 4


class Numbers(NamedTuple):
    """The numbers on which a step depends, beside its accesses.

    Attributes:
        number: number of the step in its process, from 0.
        epoch: epoch of its batch.
        ticket: ticket of its batch.
        version_read: updates before its read, where its accesses begin.
        workers: workers of the run, as the worker knew.
        horizon: number of other workers' steps that its read looked ahead.
        opt_step: updates of its private optimizer state, including this one.
        shared_step: updates of the shared optimizer state, including this one.
        lr: step size.
        norm: norm of the gradient before clipping; NaN if no gradient was written.
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
        """The numbers that `pack` wrote."""
        return cls(*_NUMBERS.unpack(content))


@dataclass(frozen=True)
class Begin:
    """A worker starts in this slot."""

    backend: str
    threads: int
    kernels: str


@dataclass(frozen=True)
class Step:
    """A step that its worker completed.

    Attributes:
        numbers: the numbers of the step.
        applied: whether its gradient was written; a gradient that is not finite or late is not.
        accesses: gap of each access, (n,) uint32.
        sums: checksum of each stripe of the weights that it read, (stripes,) uint32.
        sha256: SHA-256 of those weights, every `CHECK_EVERY` steps; else empty.
    """

    numbers: Numbers
    applied: bool
    accesses: UInt32
    sums: UInt32
    sha256: bytes = b""


@dataclass(frozen=True)
class Torn:
    """A step in which its worker died.

    Attributes:
        numbers: the numbers of the step that were known at its death.
        writing: whether it had begun to write.
        unfinished: whether it may have died within its last access.
        accesses: number of each access, (n,) uint32.
        floats: values of the shared arrays after that access, in their order, float32.
        private: the worker's private state afterwards, segment by segment, float32.
    """

    numbers: Numbers
    writing: bool
    unfinished: bool
    accesses: UInt32
    floats: bytes = b""
    private: bytes = b""


@dataclass(frozen=True)
class Died:
    """Its worker died between two steps."""


Record = Begin | Step | Torn | Died


def encode(record: Record) -> bytes:
    """The bytes of a record in a log."""
    if isinstance(record, Begin):
        return _framed(Kind.BEGIN, plain_json.dumps(vars(record)))
    if isinstance(record, Died):
        return _framed(Kind.DIED)
    numbers = record.numbers.pack()
    if isinstance(record, Torn):
        flags = WRITING * record.writing | UNFINISHED * record.unfinished
        arrays = (record.accesses.astype("<u4").tobytes(), record.floats, record.private)
        return _framed(Kind.TORN, numbers, bytes([flags]), *(zlib.compress(a, 1) for a in arrays))
    most = int(record.accesses.max(initial=0))
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    gaps = bytes([width]) + zlib.compress(record.accesses.astype(f"<u{width}").tobytes(), 1)
    sums = record.sums.astype("<u4").tobytes()
    return _framed(Kind.STEP, numbers, bytes([record.applied]), gaps, sums, record.sha256)


def _framed(kind: Kind, *pieces: bytes) -> bytes:
    payload = b"".join(part for piece in pieces for part in (_LENGTH.pack(len(piece)), piece))
    return _HEAD.pack(len(payload), zlib.crc32(payload, kind), kind) + payload


@dataclass(frozen=True)
class Limits:
    """Upper limits of the values in one run's records; see `mlxhog.strategies.access_order`.

    Attributes:
        slots: workers at once.
        tickets: batches of an epoch.
        stripes: stripes of the weights that a step reads.
        accesses: of a step.
        shared_bytes: bytes of all shared arrays.
        private_bytes: bytes of one worker's private state.
    """

    slots: int
    tickets: int
    stripes: int
    accesses: int
    shared_bytes: int
    private_bytes: int


@dataclass(frozen=True)
class Frame:
    """A record of a log with a correct checksum, not yet unpacked.

    Attributes:
        path: path of the log.
        at: offset of its first byte.
        kind: one of `Kind`.
        pieces: pieces of its payload, packed.
    """

    path: Path
    at: int
    kind: Kind
    pieces: tuple[bytes, ...]

    @property
    def numbers(self) -> Numbers:
        """The numbers of a STEP or TORN."""
        with self._checked():
            return Numbers.unpack(self.pieces[0])

    @property
    def is_hashed(self) -> bool:
        """Whether it is a STEP with a SHA-256."""
        return self.kind == Kind.STEP and len(self.pieces) == 5 and len(self.pieces[4]) > 0

    def record(self, limits: Limits | None = None) -> Record:
        """Unpack it.

        Args:
            limits: limits of its run; None trusts the log, which this process has written.

        Raises:
            RunError: the run cannot have written it.
        """
        with self._checked():
            if self.kind == Kind.BEGIN:
                return _begin(*self.pieces)
            if self.kind == Kind.DIED:
                return Died(*self.pieces)
            if self.kind == Kind.TORN:
                return _torn(*self.pieces, limits=limits)
            return _step(*self.pieces, limits=limits)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, LookupError, struct.error, zlib.error) as error:
            raise RunError(
                f"the log {self.path} is damaged: the record at byte {self.at} "
                f"({self.kind.name}) cannot be one of this run ({message_of(error)}); copy the "
                "run's folder again, or record another run"
            ) from error


def read(path: Path) -> Iterator[Record]:
    """The records of a worker's log that this process or its own workers have written.

    Raises:
        RunError: the log is missing, cut or damaged; the message says where.
    """
    return (frame.record() for frame in frames(path))


def frames(path: Path) -> Iterator[Frame]:
    """The records of one worker's log, packed.

    Raises:
        RunError: the log is missing, cut or damaged; the message says where.
    """
    try:
        with reading.open_regular(path) as file:
            content = file.read()
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
        yield _frame(path, at, kind, payload)
        at += _HEAD.size + size


def _frame(path: Path, at: int, kind: int, payload: bytes) -> Frame:
    if kind not in list(Kind):
        raise RunError(
            f"the log {path} has a record of kind {kind} at byte {at}, which this mlxhog does not "
            "know; replay it with the version that recorded it"
        )
    frame, pieces, here = Frame(path, at, Kind(kind), ()), [], 0
    with frame._checked():
        while here < len(payload):
            (size,) = _LENGTH.unpack_from(payload, here)
            here += _LENGTH.size + size
            if here > len(payload):
                raise ValueError("a piece is longer than the record")
            pieces.append(payload[here - size : here])
    return replace(frame, pieces=tuple(pieces))


def _begin(content: bytes) -> Begin:
    return Begin(**plain_json.loads(content))


def _step(
    numbers: bytes, flags: bytes, gaps: bytes, sums: bytes, sha256: bytes, *, limits: Limits | None
) -> Step:
    width = gaps[0]
    if width not in (1, 2, 4):
        raise ValueError(f"gaps of {width} bytes")
    most = None if limits is None else limits.accesses * width
    accesses = np.frombuffer(_unpacked(gaps[1:], most), f"<u{width}").astype(np.uint32)
    step = Step(
        Numbers.unpack(numbers),
        bool(flags[0]),
        accesses,
        np.frombuffer(sums, "<u4").astype(np.uint32),
        sha256,
    )
    if limits is not None:
        _check_numbers(step.numbers, limits, applied=step.applied)
        _check("stripes read", len(step.sums), limits.stripes, limits.stripes)
        if len(sha256) not in (0, 32):
            raise ValueError(f"a SHA-256 of {len(sha256)} bytes")
    return step


def _torn(
    numbers: bytes,
    flags: bytes,
    accesses: bytes,
    floats: bytes,
    private: bytes,
    *,
    limits: Limits | None,
) -> Torn:
    room: tuple[int | None, ...] = (None,) * 3
    if limits is not None:
        room = (4 * limits.accesses, limits.shared_bytes, limits.private_bytes)
    unpacked = [_unpacked(*one) for one in zip((accesses, floats, private), room, strict=True)]
    known = np.frombuffer(unpacked[0], "<u4").astype(np.uint32)
    writing, unfinished = bool(flags[0] & WRITING), bool(flags[0] & UNFINISHED)
    torn = Torn(Numbers.unpack(numbers), writing, unfinished, known, *unpacked[1:])
    if limits is not None:
        _check_numbers(torn.numbers, limits, applied=writing)
        if unfinished and not len(known):
            raise ValueError("it died in an access, and has no access")
        state = limits.private_bytes if writing else 0
        _check("bytes of private state", len(torn.private), state, state)
    return torn


def _unpacked(packed: bytes, most: int | None) -> bytes:
    """Decompress a piece; a piece of more than `most` bytes is refused before it is unpacked."""
    if most is None:
        return zlib.decompress(packed)
    unpack = zlib.decompressobj()
    content = unpack.decompress(packed, most + 1)
    if len(content) > most:
        raise ValueError(f"a piece unpacks to more than {most:,} bytes")
    if not unpack.eof:
        raise ValueError("a packed piece is cut")
    return content


def _check_numbers(numbers: Numbers, limits: Limits, *, applied: bool) -> None:
    _check("batch", numbers.ticket, 0, limits.tickets - 1)
    _check("workers", numbers.workers, 1, limits.slots)
    for name in ("number", "epoch", "version_read"):
        _check(name, getattr(numbers, name), 0, MOST_COUNT)
    for name in ("opt_step", "shared_step"):
        _check(name, getattr(numbers, name), int(applied), MOST_COUNT)
    for name in ("horizon", "lr"):
        if not math.isfinite(getattr(numbers, name)):
            raise ValueError(f"{name} is not finite")


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        expected = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        raise ValueError(f"{name}: {shown(value)}, expected {expected}")


def worker_path(directory: Path, slot: int) -> Path:
    """The log of one slot of a run."""
    return directory / FOLDER / f"worker-{slot}.log"


def append(path: Path, record: Record) -> None:
    """Append a record to a log; no other process may write it at the same time.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    with disk_errors(f"writing {path}"), path.open("ab", buffering=0) as file:
        append_all(file.fileno(), encode(record))


class Log:
    """A worker's own log, open while it appends to it.

    Attributes:
        fd: descriptor of the file.
        size: its size in bytes, where the next record begins.
    """

    def __init__(self, path: Path) -> None:
        """Open a log, which already has its BEGIN record.

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
            EnvironmentLacks: the disk is full, or the system refuses; the log is unchanged.
        """
        content = encode(record)
        with disk_errors(f"writing {self.path}"):
            append_all(self.fd, content)
        self.size += len(content)


def cut(path: Path, size: int) -> None:
    """Cut a log to `size` bytes, to remove an incomplete record.

    Raises:
        EnvironmentLacks: the system refuses.
    """
    with disk_errors(f"writing {path}"):
        os.truncate(path, size)
