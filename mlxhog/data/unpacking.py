"""Opening files of text for reading, compressed by gzip, xz or Zstandard or not at all.

The opened files support reading forward, as a whole or by lines, and `peek`, but not `seek`. A
truncated file is an error, never a shorter text.

A compressed file is read within `Bounds`, since a few bytes may unpack to any number. So is every
file that the user has not named. A pipe, or a device such as /dev/zero, may have no end, so it is
refused.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from mlxhog.base import reading
from mlxhog.base.quantities import format_bytes
from mlxhog.base.reading import MOST_LINE_BYTES
from mlxhog.errors import DataError, EnvironmentLacks

try:
    import lzma
except ImportError as error:  # as of Pythons that were compiled on a Mac without it
    raise EnvironmentLacks(
        "this Python was built without xz, which the text in the package needs; install xz (brew "
        "install xz, or apt-get install liblzma-dev) and build Python again, or take another one"
    ) from error

SUFFIXES = frozenset([".gz", ".xz", ".zst"])
"""Suffixes of compressed files, in small letters or capitals."""
_MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
MOST_EXPANDED = 1 << 30
EXPANSION = 250
"""A file that the user named may unpack to this many times its size, or to `MOST_EXPANDED`."""


@dataclass(frozen=True)
class Bounds:
    """Limits for an untrusted file, which must be a regular file.

    Attributes:
        most: most bytes of its unpacked content.
        line: most bytes of a line.
        check: called before each piece; an error of it ends the reading.
    """

    most: int
    line: int
    check: Callable[[], None]

    def open(self, path: Path) -> BinaryIO:
        """Open a regular file; a pipe is refused without waiting.

        Raises:
            OSError: the file cannot be opened, or is not a regular file.
            DataError: the file is larger than `most`.
        """
        file = reading.open_regular(path)
        if os.fstat(file.fileno()).st_size <= self.most:
            return file
        file.close()
        raise self.too_large()

    def too_large(self) -> DataError:
        """The error for a file with more bytes."""
        return DataError(f"it holds more than {self.most:,} bytes, unpacked; split it")


@dataclass(frozen=True)
class _Expansion(Bounds):
    """Limits for a compressed file that the user has named.

    Text is compressed to a tenth, logs to a hundredth. Without a limit, a small file that was made
    to unpack to more than any disk would be read for hours.

    Attributes:
        path: path of the file.
        n_bytes: its compressed size.
    """

    path: Path
    n_bytes: int

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> Self:
        """The limits for an open file."""
        n_bytes = os.fstat(file.fileno()).st_size
        return cls(most_unpacked(n_bytes), MOST_LINE_BYTES, lambda: None, path, n_bytes)

    def too_large(self) -> DataError:
        """The error for a file that unpacks to more than a text does."""
        return DataError(
            f"{self.path} unpacks to more than {EXPANSION} times its {format_bytes(self.n_bytes)}, "
            "which text does not; remove it, or unpack it yourself if its content is correct"
        )


def most_unpacked(n_bytes: int) -> int:
    """Return the bytes to which a file of `n_bytes` may unpack if the user has named it."""
    return max(MOST_EXPANDED, EXPANSION * n_bytes)


def open_file(path: Path, bounds: Bounds | None = None) -> BinaryIO:
    """Open a file for reading its unpacked content.

    Args:
        path: the file; its suffix, in small letters or capitals, says how it is compressed; for
            other suffixes the first bytes say it.
        bounds: limits for the file; None for a file that the user has named. The limit of such a
            file, if it is compressed, depends on its size.

    Raises:
        OSError: the file cannot be opened, or is not a regular file; reading a damaged file raises
            one of `damages`.
        DataError: during reading: the file has more bytes than its bounds allow.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    packed: Any = reading.open_regular(path) if bounds is None else bounds.open(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        start = packed.peek(5)
        suffix = next((one for magic, one in _MAGIC.items() if start.startswith(magic)), "")
    if bounds is None:
        if suffix not in SUFFIXES:
            return cast(BinaryIO, packed)
        bounds = _Expansion.of(path, packed)
    try:
        return io.BufferedReader(_Bounded(packed, _unpacked(suffix, packed), bounds), _BUFFER_BYTES)
    except EnvironmentLacks:
        packed.close()
        raise


def check_size(path: Path, bounds: Bounds) -> None:
    """Unpack a compressed file once, to refuse a file that is too large within seconds.

    Raises:
        DataError: the file has more bytes than its bounds allow.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        return
    try:
        file = open_file(path, bounds)
    except OSError:
        return  # the next reader reports the error
    with file, contextlib.suppress(*damages()):
        while file.read(_BUFFER_BYTES):
            pass


def _unpacked(suffix: str, file: BinaryIO) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(file))
    if suffix == ".zst":
        return _open_zstd(file)
    return file


def damages() -> tuple[type[BaseException], ...]:
    """Return the types of errors that reading a damaged file raises, also those for .zst."""
    zstd = sys.modules.get("compression.zstd") or sys.modules.get("zstandard")
    own = () if zstd is None else (zstd.ZstdError,)
    return (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError, *own)


def _open_zstd(file: BinaryIO) -> BinaryIO:
    is_in_python = sys.version_info >= (3, 14)
    try:
        zstd: Any = importlib.import_module("compression.zstd" if is_in_python else "zstandard")
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            "reading .zst needs the package zstandard: python -m pip install zstandard"
        ) from error
    if is_in_python:
        return cast(BinaryIO, zstd.open(file, "rb"))
    return io.BufferedReader(_Frames(file, zstd), _BUFFER_BYTES)


_BUFFER_BYTES = 1 << 17
_PACKED_BYTES = 4096  # read at once: at most 128 MiB unpacked, since 4 bytes give at most 128 KiB


class _Frames(io.RawIOBase):
    """The content of a `.zst` file, unpacked with the package zstandard.

    The reader of that package cannot read lines, and accepts a truncated file.

    Args:
        file: the file; it is closed with this one.
        zstd: the module.
    """

    def __init__(self, file: BinaryIO, zstd: Any) -> None:
        """See the class."""
        super().__init__()
        self._file = file
        self._zstd = zstd
        self._frame: Any = zstd.ZstdDecompressor().decompressobj()
        self._packed = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with unpacked bytes; 0 at the end of the last frame.

        Raises:
            EOFError: the file ends within a frame, or has no frame.
        """
        while not self._unpacked:
            packed = self._packed or self._file.read(_PACKED_BYTES)
            if not packed and self._frame is None:
                return 0
            if not packed:
                raise EOFError("the file ended before its last frame did")
            if self._frame is None:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            self._unpacked = memoryview(self._frame.decompress(packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()


class _Bounded(io.RawIOBase):
    """An unpacked file within its bounds.

    Args:
        packed: the file; it is closed with this one.
        unpacked: its unpacked content.
        bounds: limits for the content.
    """

    def __init__(self, packed: BinaryIO, unpacked: BinaryIO, bounds: Bounds) -> None:
        """See the class."""
        super().__init__()
        self._packed, self._unpacked, self._bounds = packed, cast(Any, unpacked), bounds
        self._rest = bounds.most

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with unpacked bytes; 0 at the end.

        Raises:
            DataError: the content is longer than the bounds allow.
        """
        self._bounds.check()
        size = int(self._unpacked.readinto(buffer))
        self._rest -= size
        if self._rest < 0:
            raise self._bounds.too_large()
        return size

    def close(self) -> None:
        """Close the file, too."""
        self._unpacked.close()
        self._packed.close()
        super().close()
