"""A state dict that `torch.save` wrote: its tensors as views of one mapping of the file.

Only tensors and plain containers are unpickled (`weights_only=True`). They are loaded onto torch's
"meta" device, which reads none of their numbers and records where in the file each storage begins.

The sizes of a tensor in the pickle cannot be trusted: torch itself computes its extent in 64 bits,
which wrap, and enlarges a storage that is too small. So before a view is made, the sizes are
compared, in Python's integers, with the bytes that the archive really has at that place.

Source: `torch.serialization`, torch 2.13. Files written before torch 1.6 have another layout and
are read as a whole.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mlxhog.base import mapped, reading
from mlxhog.base.tensors import refuse_many
from mlxhog.errors import UNLOADABLE, CheckpointError, message_of, not_imported, shown

try:
    import torch
except UNLOADABLE as error:
    raise not_imported(
        "torch",
        error,
        "a checkpoint in torch's own format needs the package torch: "
        "python -m pip install -c constraints.txt torch",
    ) from error

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs store the model beside their own data."""

_DEEPEST = 8
"""Limit of nested wrappers; a mapping may contain itself."""

_ZIP = b"PK\x03\x04"
"""First bytes of a zip archive."""

_LOCAL_HEADER = struct.Struct("<26x2H")
"""Before an entry's bytes: 26 bytes that the archive's directory repeats, then the lengths of the
entry's name and of its extra field, which follow."""

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: mapped.BFLOAT16,
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict, which may be under one of `WRAPPERS`.

    Raises:
        CheckpointError: the file is missing, truncated or foreign; it has objects other than
            tensors, or no state dict; or a tensor has a type that NumPy and ml_dtypes do not
            support, or reaches beyond its numbers in the file.
    """
    entries = _entries(path)  # first: torch would also decompress archives of other programs
    tensors = _state_dict(_load(path, "meta"), path)
    refuse_many(tensors, path)
    for name, tensor in tensors.items():
        _refuse_unusual(tensor, name, path)
    if entries is not None:
        data = mapped.map_file(path)
        return {name: _view(data, entries, t, name, path) for name, t in tensors.items()}
    _refuse_larger_than_file(tensors, path)
    whole = _state_dict(_load(path, "cpu"), path)
    return {name: _plain(tensor, name, path) for name, tensor in whole.items()}


def _load(path: Path, device: str) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings on pickles; our error says more
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} has more than tensors, and unpickling it could run any program; save only "
            "the state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # torch's unpickler may raise any type of error
        what = "it ends too early" if isinstance(error, EOFError) else message_of(error)
        raise CheckpointError(
            f"{path} is missing, truncated or foreign: {what}; copy it again"
        ) from error


def _state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        inner = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
            if tensors:
                return tensors
            break
        loaded = inner[0]
    raise CheckpointError(
        f"{path} has no state dict; save one: torch.save(model.state_dict(), FILE)"
    )


def _refuse_unusual(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Refuse a tensor that NumPy and ml_dtypes cannot represent, by its kind, type or shape."""
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise CheckpointError(
            f"{path}: {name} has type {kind}, expected float32, float16 or bfloat16"
        )
    if not mapped.has_array(tensor.shape, _DTYPES[tensor.dtype]):
        raise CheckpointError(
            f"{path}: {name} has shape {shown(tuple(tensor.shape))}, which no array can have; save "
            "the state dict again"
        )


def _entries(path: Path) -> dict[int, int] | None:
    """Return, for each entry of a zip archive, the offset of its bytes -> their number."""
    entries: dict[int, int] = {}
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return None
            listed = zipfile.ZipFile(file).infolist()
            reading.refuse_more("entries", len(listed), 2 * reading.MOST_TENSORS, path)
            for entry in listed:
                if entry.filename.endswith("data.pkl"):
                    most = reading.MOST_HEADER_BYTES
                    reading.refuse_more("bytes of pickle", entry.file_size, most, path)
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(
                        f"{path} is compressed: {entry.filename}; save the state dict again with "
                        "torch.save, which does not compress"
                    )
                file.seek(entry.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                entries[file.tell() + sum(lengths)] = entry.file_size
    except OSError:
        return None
    except (ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is missing, truncated or foreign: {error}; copy it again"
        ) from error
    return entries


def _view(
    data: NDArray[np.uint8],
    entries: Mapping[int, int],
    tensor: torch.Tensor,
    name: str,
    path: Path,
) -> NDArray[Any]:
    """Return a view of the file with the numbers of a tensor that is on the meta device."""
    dtype = _DTYPES[tensor.dtype]
    first = tensor.untyped_storage()._checkpoint_offset
    if first is None or first not in entries:
        raise CheckpointError(f"{path} has no numbers of {name}; save the state dict again")
    if first + entries[first] > data.size:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {first + entries[first]:,} of {data.size:,}"
        )
    n = entries[first] // dtype.itemsize
    _refuse_beyond(tensor, n, name, path)
    elements = data[first : first + n * dtype.itemsize].view(dtype)[tensor.storage_offset() :]
    if tensor.is_contiguous():
        return elements[: tensor.numel()].reshape(tuple(tensor.shape))
    strides = [stride * dtype.itemsize for stride in tensor.stride()]
    return as_strided(elements, tuple(tensor.shape), strides, writeable=False)


def _refuse_beyond(tensor: torch.Tensor, n: int, name: str, path: Path) -> None:
    """Refuse a tensor that reaches beyond its `n` elements, or has an element at several places."""
    first, shape, strides = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    inside = min((first, *shape, *strides)) >= 0 and tensor.numel() <= n
    # Not torch's own arithmetic: its 64 bits wrap.
    steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    if not inside or (0 not in shape and first + sum(steps) >= n):
        raise CheckpointError(
            f"{path}: {name} has shape {shape}, strides {strides} and offset {first}, but the file "
            f"has {n:,} elements of it; the file is damaged or forged, copy it again"
        )


def _refuse_larger_than_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a file of the old layout with larger tensors than itself, before any allocation."""
    storages = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        _refuse_beyond(tensor, storage.nbytes() // tensor.itemsize, name, path)
    claimed, size = sum(storages.values()), path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"{path} is truncated or forged: it has {size:,} bytes, and its tensors {claimed:,}; "
            "copy it again"
        )


def _plain(tensor: torch.Tensor, name: str, path: Path) -> NDArray[Any]:
    n = tensor.untyped_storage().nbytes() // tensor.itemsize
    _refuse_beyond(tensor, n, name, path)  # torch may have enlarged its storage
    whole = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return whole.view(torch.int16).numpy().view(mapped.BFLOAT16)
    return np.asarray(whole.numpy())
