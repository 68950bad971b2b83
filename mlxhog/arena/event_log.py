"""The log of a recorded run: all that a replay needs beside the configuration.

    RUN/replay/config.yaml     its configuration, resolved
    RUN/replay/header.json     `Header`: its workers and versions, digests of layout, text, weights
    RUN/replay/worker-N.log    `Record`s of the workers in slot N, in their order
    RUN/replay/end.json        `End`: its result; missing if the supervisor was killed

A log of a worker is a sequence of records, appended and never changed:

    u32   bytes of the payload
    u32   CRC-32 of the payload
    ...   payload: u8 index in `KINDS`, then each field behind its length (u32), as `_FIELDS` says

Accesses to shared parameters are numbered under each lock (turns, `metal/native/updates/turns.h`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, reading, typed
from mlxhog.base.durable import append_all, disk_errors, replace_file
from mlxhog.base.inside import inside, subfolder
from mlxhog.errors import RunError, message_of

FOLDER: Final = "replay"
FORMAT: Final = 3
CHECK_EVERY: Final = 64
"""A worker logs a SHA-256 of the weights that it reads once in this number of steps."""

MAX_THREADS: Final = 4096

Accesses = NDArray[np.uint32]
_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_METADATA = struct.Struct("<IQQIdQQdd")
METADATA_BYTES: Final = _METADATA.size


class StepMetadata(NamedTuple):
    """The values on which a step depends, beside its accesses."""

    epoch: int  # of its batch
    ticket: int
    version_read: int  # updates before its read, where its accesses begin
    workers: int  # of the run, as the worker knew
    horizon: float  # steps of other workers by which its read was extrapolated
    opt_step: int = 0  # updates of its private optimizer state, including this one
    shared_step: int = 0  # updates of the shared optimizer state, including this one
    lr: float = 0.0
    norm: float = float("nan")  # of the gradient before clipping; NaN if none was written

    def pack(self) -> bytes:
        """As `METADATA_BYTES` bytes."""
        return _METADATA.pack(*self)

    @classmethod
    def unpack(cls, content: bytes) -> StepMetadata:
        """The metadata that `pack` wrote."""
        return cls(*_METADATA.unpack(content))


@dataclass(frozen=True)
class Begin:
    """A worker starts in this slot."""

    backend: str
    threads: int
    kernels: str

    def __post_init__(self) -> None:
        """Refuse threads of which no machine has that many, as a damaged log may say."""
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"a worker has {self.threads} threads, expected 1 to {MAX_THREADS}")


@dataclass(frozen=True)
class RecordedStep:
    """A step that its worker completed."""

    numbers: StepMetadata
    applied: bool  # whether its gradient was written; one that is not finite or late is not
    accesses: Accesses  # number of each access, (n,)
    sha256: bytes = b""  # of the weights that it read, every `CHECK_EVERY` steps


@dataclass(frozen=True)
class Torn:
    """A step in which its worker died."""

    numbers: StepMetadata  # those that were known at its death
    writing: bool  # whether it had begun to write
    unfinished: bool  # whether it may have died within its last access
    accesses: Accesses  # number of each access, (n,)
    floats: bytes = b""  # values of the shared arrays after that access, in their order, float32
    private: bytes = b""  # the worker's private state afterwards, segment by segment, float32


Record = Begin | RecordedStep | Torn
KINDS: Final = (Begin, RecordedStep, Torn)


def _packed(array: Accesses) -> bytes:
    """Compress by byte planes, lowest first: the turns of a step are nearly equal."""
    return zlib.compress(array.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes(), 1)


def _unpacked(content: bytes, max_bytes: int) -> Accesses:
    planes = np.frombuffer(_decompressed(content, max_bytes), np.uint8).reshape(4, -1)
    return np.frombuffer(planes.T.tobytes(), "<u4").astype(np.uint32)


def _decompressed(content: bytes, max_bytes: int) -> bytes:
    unpacking = zlib.decompressobj()  # four megabytes of zlib may be four gigabytes
    unpacked = unpacking.decompress(content, max_bytes + 1)
    if len(unpacked) > max_bytes or not unpacking.eof:
        raise ValueError(f"a field is cut short, or unpacks to more than {max_bytes:,} bytes")
    return unpacked


_FIELDS: Final[dict[str, tuple[Callable[[Any], bytes], Callable[[bytes, int], Any]]]] = {
    "str": (str.encode, lambda content, _: content.decode()),
    "int": (_LENGTH.pack, lambda content, _: _LENGTH.unpack(content)[0]),
    "bool": (lambda value: bytes([value]), lambda content, _: content != b"\0"),
    "bytes": (lambda value: zlib.compress(value, 1), _decompressed),
    "Accesses": (_packed, _unpacked),
    "StepMetadata": (StepMetadata.pack, lambda content, _: StepMetadata.unpack(content)),
}
"""How a field of each type becomes bytes, and the way back, of at most a number of bytes."""


def encode(record: Record) -> bytes:
    """The bytes of a record in a log."""
    payload = bytes([KINDS.index(type(record))])
    for field in fields(record):
        content = _FIELDS[str(field.type)][0](getattr(record, field.name))
        payload += _LENGTH.pack(len(content)) + content
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _decoded(payload: bytes, max_bytes: int) -> Record:
    kind, values, at = KINDS[payload[0]], [], 1
    for field in fields(kind):
        (size,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size + size
        values.append(_FIELDS[str(field.type)][1](payload[at - size : at], max_bytes))
    return kind(*values)


def read(path: Path, max_bytes: int = reading.MAX_BYTES) -> Iterator[Record]:
    """The records of one worker's log; a compressed field has at most `max_bytes`.

    Raises:
        RunError: the log is missing, cut or damaged; the message says where.
    """
    at = 0
    try:
        with reading.open_regular(path) as file:
            while head := file.read(_HEAD.size):
                size, crc = _HEAD.unpack(head.ljust(_HEAD.size, b"\xff"))
                payload = file.read(min(size, os.fstat(file.fileno()).st_size))
                if len(payload) < size or zlib.crc32(payload) != crc:
                    raise ValueError(f"its record at byte {at} is not as it was written")
                yield _decoded(payload, max_bytes)
                at += _HEAD.size + size
    except (OSError, ValueError, TypeError, LookupError, struct.error, zlib.error) as error:
        raise RunError(
            f"the log {path} is cut or damaged: {message_of(error)}; copy the run's folder again, "
            "or record another run"
        ) from error


def worker_path(directory: Path, slot: int) -> Path:
    """The log of one slot of a run."""
    return directory / FOLDER / f"worker-{slot}.log"


def append(path: Path, record: Record) -> None:
    """Append a record to a log that no other process writes; unchanged if the disk is full."""
    opener = inside(path.parents[1])
    with disk_errors(f"writing {path}"), open(path, "ab", buffering=0, opener=opener) as file:
        append_all(file.fileno(), encode(record))


# -- the two JSON files ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The set-up of a recorded run, in `header.json`."""

    FILE: ClassVar = "header.json"
    ABSENT: ClassVar = (
        "the run {} was not recorded; record one with: "
        "mlxhog train --determinism record --workers mlx:cpu,torch:cpu"
    )
    workers: tuple[Begin, ...]  # at the start
    slots: int  # of the worker table
    layout_sha256: str
    tokens_sha256: str  # of the training text
    versions: Mapping[str, str]  # of Python and packages; the machine's name and processor
    initial_sha256: Mapping[str, str]  # of weights and optimizer state


@dataclass(frozen=True)
class End:
    """The final state of a recorded run, in `end.json`."""

    FILE: ClassVar = "end.json"
    ABSENT: ClassVar = (
        "the log of {} has no end: the run still trains, or was killed with its supervisor; only a "
        "run that has ended can be replayed"
    )
    sha256: Mapping[str, str]  # of weights and optimizer state


Part = TypeVar("Part", Header, End)


def store(directory: Path, part: Header | End) -> None:
    """Write one of the two files into a run's folder."""
    path = directory / FOLDER / part.FILE
    with disk_errors(f"writing {path}"):
        subfolder(directory, FOLDER)
        replace_file(path, plain_json.dumps({"format": FORMAT, **asdict(part)}, indent=1) + b"\n")


def load(cls: type[Part], directory: Path) -> Part:
    """Read one of the two files.

    Raises:
        RunError: the run was not recorded, has not ended, or the file is damaged.
    """
    path = directory / FOLDER / cls.FILE
    try:
        values = plain_json.read(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"expected a log of format {FORMAT}")
        return typed.read(cls, values)
    except FileNotFoundError:
        raise RunError(cls.ABSENT.format(directory)) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({message_of(error)}); replay it with the version that "
            "recorded it, or copy the run's folder again"
        ) from error
