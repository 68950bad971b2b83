"""A state dict that `torch.save` wrote: its tensors as views of one mapping of the file.

Only tensors and plain containers are unpickled (`weights_only=True`). They are loaded onto torch's
"meta" device, which reads none of their numbers and records where in the file each storage begins.

Source: `torch.serialization`, torch 2.13; files written before torch 1.6 have another layout
and are read as a whole.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mlxhog import mapped
from mlxhog.errors import CheckpointError, EnvironmentLacks
from mlxhog.limits import said

try:
    import torch
except ImportError as error:
    raise EnvironmentLacks(
        "a checkpoint in torch's own format needs the package torch: "
        "python -m pip install -c constraints.txt torch"
    ) from error

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs keep the model beside their own things."""

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
    """Return the tensors of a state dict, which may lie under one of `WRAPPERS`.

    Raises:
        CheckpointError: the file is missing, truncated or foreign, holds objects other than
            tensors, no state dict, or a tensor of a type that NumPy and ml_dtypes lack.
    """
    found = _state_dict(_load(path, "meta"), path)
    if any(tensor.untyped_storage()._checkpoint_offset is None for tensor in found.values()):
        whole = _state_dict(_load(path, "cpu"), path)
        return {name: _plain(tensor, name, path) for name, tensor in whole.items()}
    data = mapped.map_file(path)
    return {name: _view(data, tensor, name, path) for name, tensor in found.items()}


def _load(path: Path, device: str) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which the error explains
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and unpickling it could run any program; save the "
            "state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"{path} asks for more memory than there is; it is damaged: copy it again"
        ) from error
    except Exception as error:  # the bytes of a pickle choose what torch's unpickler raises
        raise CheckpointError(
            f"{path} is missing, truncated or foreign: {said(error)}; copy it again"
        ) from error


def _state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(loaded, Mapping):
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
        inner = [loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            if tensors:
                return tensors
            break
        loaded = inner[0]
    raise CheckpointError(
        f"{path} holds no state dict; save one: torch.save(model.state_dict(), FILE)"
    )


def _view(data: NDArray[np.uint8], tensor: torch.Tensor, name: str, path: Path) -> NDArray[Any]:
    """Return what the file holds of a tensor that is on the meta device."""
    dtype = _dtype(tensor, name, path)
    storage = tensor.untyped_storage()
    first = int(storage._checkpoint_offset or 0)
    end = first + storage.nbytes()
    if end > data.size:
        raise CheckpointError(f"{path} is truncated: {name} ends at byte {end:,} of {data.size:,}")
    elements = data[first : end - storage.nbytes() % dtype.itemsize].view(dtype)
    elements = elements[tensor.storage_offset() :]
    if tensor.is_contiguous():
        return elements[: tensor.numel()].reshape(tuple(tensor.shape))
    strides = [stride * dtype.itemsize for stride in tensor.stride()]
    return as_strided(elements, tuple(tensor.shape), strides, writeable=False)


def _plain(tensor: torch.Tensor, name: str, path: Path) -> NDArray[Any]:
    dtype = _dtype(tensor, name, path)
    whole = tensor.detach().contiguous()
    if dtype == mapped.BFLOAT16:
        return whole.view(torch.int16).numpy().view(dtype)
    return np.asarray(whole.numpy())


def _dtype(tensor: torch.Tensor, name: str, path: Path) -> np.dtype[Any]:
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name} has type {tensor.dtype}, expected float32, float16 or bfloat16"
        )
    return _DTYPES[tensor.dtype]
