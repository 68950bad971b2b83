"""Opening files of text for reading, compressed by gzip, xz or Zstandard or not at all.

Whatever is opened reads forward, whole or by lines, and can be peeked at; nothing seeks in it. A
truncated file is an error, never a shorter text.
"""

from __future__ import annotations

import gzip
import importlib
import io
import lzma
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlxhog.errors import EnvironmentLacks

SUFFIXES = frozenset([".gz", ".xz", ".zst"])
"""Of compressed files, in small letters or capitals."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading what it holds, unpacked.

    Args:
        path: the file; its suffix, in small letters or capitals, says how it is compressed.

    Raises:
        OSError: it cannot be opened; while it is read, one of `damages` may be raised.
        EnvironmentLacks: unpacking it needs a package that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if suffix == ".zst":
        return _open_zstd(path)
    return path.open("rb")


def damages() -> tuple[type[BaseException], ...]:
    """Return what reading a damaged file raises; the package for .zst has an error of its own."""
    zstd = sys.modules.get("compression.zstd") or sys.modules.get("zstandard")
    own = () if zstd is None else (zstd.ZstdError,)
    return (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError, *own)


def _open_zstd(path: Path) -> BinaryIO:
    is_in_python = sys.version_info >= (3, 14)
    try:
        zstd: Any = importlib.import_module("compression.zstd" if is_in_python else "zstandard")
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            "reading .zst needs the package zstandard: python -m pip install zstandard"
        ) from error
    if is_in_python:
        return cast(BinaryIO, zstd.open(path, "rb"))
    return io.BufferedReader(_Frames(path.open("rb"), zstd), _BUFFER_BYTES)


_BUFFER_BYTES = 1 << 17
_PACKED_BYTES = 4096  # at once: Zstandard packs at most 128 KiB into 4 bytes, so 128 MiB unpacked


class _Frames(io.RawIOBase):
    """What a `.zst` file holds, by the package zstandard.

    The reader of that package has no lines, and takes a truncated file for a whole one.

    Args:
        file: the file, which is closed with this one.
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
        """Fill a buffer as far as is unpacked; 0 at the end of the last frame.

        Raises:
            EOFError: the file ends within a frame, or holds none.
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
