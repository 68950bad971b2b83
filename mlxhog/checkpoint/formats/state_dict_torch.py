"""Read a state dict of `torch.save` as views of the mapped file.

Only tensors and plain containers are unpickled (`weights_only=True`), and torch refuses a tensor
that reaches beyond its data in the file.

Source: `torch.serialization`, torch 2.13.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import mapped, reading
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

_DEEPEST = 8  # limit of nested wrappers; a mapping may contain itself

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    getattr(torch, name): np.dtype(name)
    for name in "float16 float32 float64 bool uint8 int8 int16 int32 int64".split()
} | {torch.bfloat16: mapped.BFLOAT16}


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict, which may be under one of `WRAPPERS`.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or of a torch before 1.6; it has
            objects other than tensors, or no state dict; or a tensor has a type that NumPy and
            ml_dtypes do not support, or reaches beyond its data in the file.
    """
    tensors = _state_dict(_load(path, map_location="cpu", mmap=True), path)  # which reads none
    places = _state_dict(_load(path, map_location="meta"), path)
    data = mapped.map_file(path)
    return {name: _view(data, t, places[name], name, path) for name, t in tensors.items()}


def _load(path: Path, **how: Any) -> object:
    way_out = "save the state dict again: torch.save(model.state_dict(), FILE)"
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:  # torch would take it as numbers
                    raise CheckpointError(f"{path} is compressed: {entry.filename}; {way_out}")
                if not entry.filename.endswith("data.pkl"):
                    continue
                if entry.file_size > reading.MAX_HEADER_BYTES:
                    raise ValueError(f"its pickle has {entry.file_size:,} bytes")
                # torch allows this one function whose result may be of any size
                if b"bytearray" in archive.read(entry):
                    raise pickle.UnpicklingError
        with warnings.catch_warnings(action="ignore"):  # warnings on pickles; our error says more
            return torch.load(path, weights_only=True, **how)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} has more than tensors, and unpickling it could run any program; {way_out}"
        ) from error
    except Exception as error:  # torch's unpickler may raise any type of error
        raise CheckpointError(
            f"{path} is missing, truncated, foreign, or of a torch before 1.6: "
            f"{message_of(error)}; copy it again, or {way_out}"
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


def _view(
    data: NDArray[np.uint8], tensor: torch.Tensor, place: torch.Tensor, name: str, path: Path
) -> NDArray[Any]:
    """View a tensor's data in the file, at the place that torch finds on the meta device."""
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise CheckpointError(
            f"{path}: {name} has type {kind}, expected float32, float16 or bfloat16 with numbers"
        )
    shape, dtype = tuple(tensor.shape), _DTYPES[tensor.dtype]
    n = tensor.untyped_storage().nbytes() // dtype.itemsize
    if not mapped.has_array(shape, dtype) or tensor.numel() > n:
        raise CheckpointError(
            f"{path}: {name} has shape {shown(shape)}, which no array of {n:,} elements can have; "
            "save the state dict again"
        )
    first = place.untyped_storage()._checkpoint_offset
    if first is None:  # the pickle makes a tensor without numbers
        raise CheckpointError(f"{path}: {name} has no numbers; save the state dict again")
    first += int(tensor.storage_offset()) * dtype.itemsize
    strides = [stride * dtype.itemsize for stride in tensor.stride()]
    return np.ndarray(shape, dtype, data[first:].data, 0, strides)
