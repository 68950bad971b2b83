"""A safetensors file, written without a copy and read without one.

Layout: u64 length of the header, little endian; the header, JSON; the tensors' bytes. The package
`safetensors` writes it and checks it; the mapping below reads what it has checked.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlxhog.durable import sync
from mlxhog.errors import CheckpointError

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors and flush them to the disk.

    Args:
        path: the file to create.
        tensors: name -> array; those that are not C-contiguous are copied first.

    Raises:
        OSError: the file cannot be written; ENOSPC where the disk is full.
    """
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    # A zero-dimensional array would come back as (1,).
    shaped = {name: array.reshape(tensors[name].shape) for name, array in contiguous.items()}
    try:
        # Without this metadata transformers refuses the file.
        save_file(shaped, path, metadata={"format": "pt"})
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        full = (errno.ENOSPC, errno.EDQUOT)
        code = next((c for c in full if f"(os error {c})" in str(error)), errno.EIO)
        raise OSError(code, f"{os.strerror(code)} ({error})", str(path)) from error
    sync(path)


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file as read-only views of one mapping of it.

    Raises:
        CheckpointError: the file is missing, truncated, not a safetensors file, or holds a tensor
            of a type that NumPy lacks, such as bfloat16.
    """
    try:
        with safe_open(path, "numpy"):
            pass  # opening it checks the header, the offsets and the length of the file
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(n_header))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, truncated or foreign: {error}") from error
    header.pop("__metadata__", None)
    first = 8 + n_header
    if path.stat().st_size == first:  # an empty range cannot be mapped
        data = np.empty(0, np.uint8)
    else:
        data = np.memmap(path, np.uint8, mode="r", offset=0)[first:]
    return {name: _view(data, entry, name, path) for name, entry in header.items()}


def _view(data: NDArray[np.uint8], entry: dict[str, Any], name: str, path: Path) -> NDArray[Any]:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name} has type {entry['dtype']}, expected float32; convert the checkpoint"
        )
    start, end = entry["data_offsets"]
    view = np.asarray(data[start:end]).view(_DTYPES[entry["dtype"]])
    return view.reshape(entry["shape"])
