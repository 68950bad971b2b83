"""Frozen weights of a base: how their tensors are held, and one converted file for all processes.

A format is one of `FORMATS`. It holds for the matrices of linear layers and for the embedding, see
`is_reduced`; all other parameters are float32, and each process has its own copy: they are few.

    keep        as in the file, float32 or bfloat16
    float32     4 bytes an element
    bfloat16    2 bytes
    8bit, 4bit  quantized, see `models/ops/frozen.py`; matrices that do not suit are float32

Every worker maps the files of the base and reads the tensors where they lie, so a machine has them
once in memory. A file in another format is converted once, by `prepare`, into the user's cache.

A mapped tensor must not be copied, or each worker had its own base. So a base is read through its
mapping while it is used, and a program that shortens the file in place ends the workers by a bus
error. A file that is removed, or replaced by a rename, as downloads are, stays whole.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import mapped
from mlxhog.errors import ConfigError, ShapeError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.frozen import FrozenWeight, names_of, quantize, suits

Tensors = Mapping[str, NDArray[Any]]

WEIGHTS = {"float32": np.dtype(np.float32), "bfloat16": mapped.BFLOAT16}
"""Formats of floats."""

QUANTIZED_BITS = {"8bit": 8, "4bit": 4}
"""Formats of quantized weights, and their bits per element."""

FORMATS = ("keep", *WEIGHTS, *QUANTIZED_BITS)


def is_reduced(model: ModelConfig, name: str) -> bool:
    """Whether a format holds for a parameter: a matrix of linear layers, or the embedding."""
    is_used_so = name in families.matmul_weights(model) or name == families.embedding(model)
    return is_used_so and len(families.param_spec(model)[name].shape) == 2


def weight(model: ModelConfig, tensors: Tensors, name: str, weights: str) -> FrozenWeight:
    """Return a parameter that `is_reduced` in a format, where it lies or converted in memory.

    Raises:
        ConfigError: no such format, or the tensor is quantized in another one.
        ShapeError: a quantized tensor has another shape than the model's.
    """
    if weights not in FORMATS:
        raise ConfigError(f"weights are {weights!r}; choose one of {', '.join(FORMATS)}")
    tensor, shape = tensors[name], families.param_spec(model)[name].shape
    if tensor.dtype not in mapped.FLOATS:
        own = FrozenWeight(
            tuple(map(_in_place, (tensors[part] for part in names_of(name)))),
            tensor.shape[1] * 32 // shape[1],
        )
        if own.shape != shape or own.bits not in QUANTIZED_BITS.values():
            raise ShapeError(
                f"{name} has quantized weights of shape {tensor.shape}, the model's are {shape}; "
                "use the files of this model in 4 or 8 bits"
            )
        if weights not in ("keep", f"{own.bits}bit"):
            raise ConfigError(
                f"{name} has {own.bits} bits, and weights are {weights}; use keep, or a base "
                "that is not quantized"
            )
        return own
    if weights in QUANTIZED_BITS and suits(shape):
        bits = QUANTIZED_BITS[weights]
        return FrozenWeight(quantize(tensor, bits), bits)
    dtype = _dtype(tensor, weights)
    if tensor.dtype == dtype:
        return FrozenWeight((_in_place(tensor),))
    out = np.empty(shape, dtype)
    mapped.copy(tensor, out)
    return FrozenWeight((out,))


def _dtype(tensor: NDArray[Any], weights: str) -> np.dtype[Any]:
    """Return the type of floats in a format; native operators have no float16."""
    if weights == "keep" and tensor.dtype in WEIGHTS.values():
        return tensor.dtype
    return WEIGHTS.get(weights, WEIGHTS["float32"])


def _in_place(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as kernels read it; a copy of one that is not aligned."""
    return np.require(tensor, requirements="CA")
