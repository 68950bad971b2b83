"""Read a safetensors file by mapping it, and write one in chunks.

Layout: u64 length of the header, little endian; the header, JSON, padded with spaces to a multiple
of 64 bytes with the length; the tensors' bytes, the widest types first, so that each lies on a
multiple of its own size. The package `safetensors` checks the header of a file that is read.

Source: the format's description in huggingface/safetensors.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mlxhog.base import mapped, plain_json, reading
from mlxhog.base.disk import flush
from mlxhog.errors import CheckpointError, message_of, shown

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": mapped.BFLOAT16,
    "BOOL": np.dtype("?"),
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (8, 4, 2)},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (8, 4, 2, 1)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (8, 4, 2, 1)},
}
_ALIGNMENT = 64
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def stored_dtype(array: NDArray[Any], dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """Return the type of an array in a file that stores parameters as `dtype`."""
    return array.dtype if dtype is None or array.dtype not in mapped.FLOATS else dtype


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, contiguous or not, as `write_each` does."""
    for _ in write_each(path, arrays):
        pass


def write_each(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    dtype: np.dtype[Any] | None = None,
    *,
    change: Callable[[str, NDArray[Any]], NDArray[Any]] = lambda name, array: array,
) -> Iterator[tuple[str, bool]]:
    """Write arrays in turn; yield the name of each and whether it is finite.

    Types of parameters (`mapped.FLOATS`) become `dtype`; None keeps them. At the end the file is
    whole and on the disk. It takes a few `mapped.CHUNK_BYTES` of memory. `change` of a name and an
    array gives what is written instead, of the same shape; one result is kept at a time.

    Raises:
        OSError: the file cannot be written; ENOSPC if the disk is full. The unfinished file is
            removed.
    """
    types = {name: stored_dtype(array, dtype) for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (-types[name].itemsize, name))
    # Without this metadata transformers refuses the file.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    first = 0
    for name in order:
        end = first + arrays[name].size * types[name].itemsize
        shape, code = arrays[name].shape, _CODES[types[name]]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [first, end]}
        first = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                finite = True
                for chunk in mapped.chunks(change(name, arrays[name])):
                    with np.errstate(over="ignore"):
                        converted = chunk.astype(types[name], copy=False)
                    finite &= mapped.is_finite(converted)
                    file.write(converted.view(np.uint8).data)
                yield name, finite
            file.flush()
            flush(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file as read-only views of its mapping.

    A shared tensor, which `safetensors.torch.save_model` writes once, has all of its names.

    Raises:
        CheckpointError: the file is missing, truncated, not a safetensors file, or has a tensor of
            a type or shape that NumPy and ml_dtypes do not support.
    """
    reading.refuse_lfs_pointer(path)
    try:
        data = mapped.map_file(path)
        first = 8 + int.from_bytes(mapped.in_memory(data[:8]).tobytes(), "little")
        if first - 8 > reading.MAX_HEADER_BYTES:
            raise ValueError(f"its header has {first - 8:,} bytes")
        _check(path, data, first)
        header: dict[str, Any] = plain_json.loads(
            mapped.in_memory(data[8:first]).tobytes(), strict=False
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing, truncated or foreign: {message_of(error)}; copy it again"
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    arrays = {name: _view(data[first:], entry, name, path) for name, entry in header.items()}
    return {name: arrays[kept] for name, kept in metadata.items() if kept in arrays} | arrays


def _check(path: Path, data: NDArray[np.uint8], first: int) -> None:
    """Check header, offsets and length of a file whose tensors begin at byte `first`."""
    if mapped.is_mapped(data):
        with safe_open(path, "numpy"):
            return
    # The package, too, could not map it. A file with its header and length takes no room.
    with tempfile.NamedTemporaryFile() as hollow:
        hollow.write(data[:first].data)
        hollow.truncate(data.size)
        hollow.flush()
        with safe_open(hollow.name, "numpy"):
            pass


def _view(data: NDArray[np.uint8], entry: dict[str, Any], name: str, path: Path) -> NDArray[Any]:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} has type {entry['dtype']}, expected float32, float16 or bfloat16; "
            "convert the checkpoint with the package that wrote it"
        )
    dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    if not mapped.has_array(entry["shape"], dtype):
        raise CheckpointError(
            f"{path}: {name} has shape {shown(entry['shape'])}, which no array can have; save the "
            "checkpoint again with the package that wrote it"
        )
    return data[start:end].view(dtype).reshape(entry["shape"])
