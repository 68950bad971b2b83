"""Files mapped into memory, and arrays that view them without a second copy.

A file on a disk that cannot map it is read as a whole. A view takes no memory until it is read.
`in_memory`, `chunks` and `copy` read its data from the file, not through the mapping, so loading a
model of N bytes takes little more than N bytes of memory.

Concurrency: a mapping stays valid when its file is removed or replaced by a rename. If a program
shortens the file in place, these three functions raise an error, but an element of the view is a
bus error, which ends the process; so nothing that lasts may hold a view.
"""

import errno
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from mlxhog.errors import CheckpointError

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
"""The types that parameters may have."""

_EXPONENT = {np.dtype(np.float16): np.uint16(0x7C00), BFLOAT16: np.uint16(0x7F80)}
"""Bits of the exponent, all set in NaN and infinities only."""

CHUNK_BYTES = 1 << 22  # bytes that are read or converted at a time
_MAX_DIMENSIONS = 32  # NumPy 2 has 64, PyTorch's conversion and older ones 32


class _Mapping(mmap.mmap):
    """A mapping of a file with its own descriptor."""

    def __init__(self, descriptor: int, *_: Any, **__: Any) -> None:
        self.descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self.descriptor).atexit = False


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file as a read-only view, (size,) uint8.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    if path.stat().st_size == 0:  # perhaps no file
        return np.empty(0, np.uint8)
    with path.open("rb", buffering=0) as file:
        return map_open(file.fileno())


def map_open(descriptor: int) -> NDArray[np.uint8]:
    """Return the bytes of an open file, as `map_file` does."""
    n_bytes = os.fstat(descriptor).st_size
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE) if n_bytes else ():
        try:
            mapping = _Mapping(descriptor, 0, flags=flags, prot=mmap.PROT_READ)
        except OSError as error:  # FUSE may have private mappings alone
            if error.errno == errno.ENOMEM:
                raise
        else:
            return np.frombuffer(mapping, np.uint8)
    content = _read(descriptor, 0, n_bytes)  # an empty range cannot be mapped, either
    content.flags.writeable = False
    return content


def _read(descriptor: int, first: int, n_bytes: int) -> NDArray[np.uint8]:
    """Return a range of a file, (n_bytes,) uint8; OSError if the file ends before it."""
    content, done = np.empty(n_bytes, np.uint8), 0
    while done < n_bytes:
        wanted = min(n_bytes - done, CHUNK_BYTES)
        if not (piece := os.pread(descriptor, wanted, first + done)):
            raise OSError(errno.EIO, f"only {first + done:,} bytes can be read")
        content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return content


def is_mapped(view: NDArray[Any]) -> bool:
    """Whether an array views a mapping of `map_file`."""
    return _mapping(view) is not None


def whole_pages(view: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the whole pages in which a mapped, flat or row-major view lies, and where it begins.

    They are a flat array of its dtype, which holds the mapping; the view begins at that element.
    """
    begin = view.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(view.ctypes.data + view.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = _Pages(view, begin, (end - begin) // view.itemsize)
    return np.asarray(pages), (view.ctypes.data - begin) // view.itemsize


class _Pages:
    """Memory around a view, for NumPy; a mapping always has whole pages."""

    def __init__(self, view: NDArray[Any], begin: int, size: int) -> None:
        self.view = view
        self.__array_interface__ = {
            "version": 3, "shape": (size,), "typestr": view.dtype.str, "data": (begin, True),
        }  # fmt: skip


def has_array(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Whether NumPy can create an array of a shape, unlike some empty ones, as (0, 2^62)."""
    n_bytes = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    return len(shape) <= _MAX_DIMENSIONS and n_bytes <= np.iinfo(np.intp).max


def copy(source: NDArray[Any], out: NDArray[Any]) -> bool:
    """Fill `out`, C-contiguous, with `source` of the same shape, converted to its type.

    Returns whether every number is finite; one that is too large for the type of `out` is not.
    """
    flat, finite, first = out.reshape(-1), True, 0
    for chunk in chunks(source):
        part = flat[first : first + chunk.size]
        with np.errstate(over="ignore"):
            np.copyto(part, chunk, casting="unsafe")
        finite &= _finite(part)
        first += chunk.size
    return finite


def chunks(source: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the elements of an array in C order, in flat chunks of at most `CHUNK_BYTES`.

    Those of a mapped file are copies; a CheckpointError says that it has been shortened.
    """
    # Only transposed matrices of small cells are not contiguous.
    flat = source if source.flags.c_contiguous else np.ascontiguousarray(in_memory(source))
    flat = flat.reshape(-1)
    n = max(CHUNK_BYTES // flat.itemsize, 1)
    for first in range(0, flat.size, n):
        yield in_memory(flat[first : first + n])


def in_memory(view: NDArray[Any]) -> NDArray[Any]:
    """Return an array without a mapped file: the array itself, or a copy of a view.

    Raises:
        CheckpointError: the file has been shortened since it was mapped.
    """
    if (mapping := _mapping(view)) is None or not view.size:
        return view
    low, high = byte_bounds(view)
    first = low - np.frombuffer(mapping, np.uint8).ctypes.data
    try:
        content = _read(mapping.descriptor, first, high - low)
    except OSError as error:
        size = os.fstat(mapping.descriptor).st_size
        raise CheckpointError(
            f"a mapped file has been shortened to {size:,} bytes while it was in use; copy it "
            "again, and replace such files by a rename"
        ) from error
    return np.ndarray(view.shape, view.dtype, content.data, view.ctypes.data - low, view.strides)


def is_finite(source: NDArray[Any]) -> bool:
    """Whether an array has neither NaN nor an infinity."""
    return all(_finite(chunk) for chunk in chunks(source))


def _finite(flat: NDArray[Any]) -> bool:
    if flat.dtype in _EXPONENT:
        exponent = _EXPONENT[flat.dtype]
        return not flat.size or bool((flat.view(np.uint16) & exponent).max() != exponent)
    if not np.issubdtype(flat.dtype, np.floating):
        return True
    with np.errstate(all="ignore"):
        # A sum of squares, one pass of BLAS, keeps NaN and infinities. Finite numbers may overflow
        # it, too; then every number is checked.
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def _mapping(view: NDArray[Any]) -> _Mapping | None:
    base: Any = view
    while isinstance(base, np.ndarray):
        base = base.base
    buffer = base.obj if isinstance(base, memoryview) else base
    return buffer if isinstance(buffer, _Mapping) else None
