"""From a launch to the memory that a kernel sees, by the argument rules of MLX or of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.host.request import SMALL
from mlxhog.metal.host.signature import Signature
from mlxhog.metal.kernel import Argument, Launch

SLOTS = 31


def bound(
    launch: Launch, signature: Signature, outputs: Mapping[str, NDArray[Any]], *, mlx: bool
) -> list[NDArray[Any]]:
    """Return the arrays of a kernel by slot; arrays that it writes are the caller's own.

    Args:
        launch: with NumPy arrays, and numbers for scalars.
        signature: of the kernel as it is compiled.
        outputs: fresh arrays by name.
        mlx: MLX's rules: an input of fewer than 8 elements is padded. Otherwise PyTorch's: a number
            travels as 64-bit integer or 32-bit float.

    Raises:
        ShapeError: an argument has another kind, dtype or layout than the kernel declares.
        MetalError: the kernel's parameters are not those that were declared.
    """
    kernel = launch.kernel
    _same_parameters(launch, signature)
    names = {argument.name for argument in kernel.inputs}
    if launch.inputs.keys() != names:
        raise ShapeError(
            f"{kernel.name} got {', '.join(sorted(launch.inputs))}; "
            f"it takes {', '.join(sorted(names))}"
        )
    arrays = []
    for argument in kernel.inputs:
        value, what = launch.inputs[argument.name], f"{kernel.name}: {argument.name}"
        if argument.scalar:
            arrays.append(_scalar(value, argument, what, mlx=mlx))
        else:
            arrays.append(_array(value, argument, what, mlx=mlx))
    return [*arrays, *outputs.values()]


def _same_parameters(launch: Launch, signature: Signature) -> None:
    arguments = (*launch.kernel.inputs, *launch.kernel.outputs)
    wanted = [(slot, argument.name, "&" if argument.scalar else "*")
              for slot, argument in enumerate(arguments)]  # fmt: skip
    got = [(parameter.slot, parameter.name, parameter.form) for parameter in signature.buffers]
    if got != wanted:
        raise MetalError(
            f"kernel {signature.name} has the buffers {got}, its declaration {wanted}; "
            "make them agree in order, name and kind (* array, & scalar)"
        )
    if len(got) > SLOTS:
        raise MetalError(f"kernel {signature.name} has {len(got)} buffers; Metal has {SLOTS} slots")


def _scalar(value: Any, argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    number_like = isinstance(value, int | float | np.generic)
    if not number_like and not (isinstance(value, np.ndarray) and value.ndim == 0):
        raise ShapeError(f"{what} is {_described(value)}; it must be a number")
    dtype = np.dtype(argument.dtype)
    try:
        number = np.array(value, dtype)
    except (OverflowError, ValueError) as error:
        raise ShapeError(f"{what} is {value}, which {dtype} cannot hold") from error
    if mlx or dtype.kind == "f":
        return number
    return number.astype(np.int64)  # Metal reads the low bytes


def _array(value: Any, argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    wanted = f"a C-contiguous NumPy array of {argument.dtype}"
    if not isinstance(value, np.ndarray) or value.ndim == 0 or value.dtype != argument.dtype:
        raise ShapeError(f"{what} is {_described(value)}; it must be {wanted}")
    if not value.flags.c_contiguous:
        raise ShapeError(
            f"{what} has strides {value.strides} and is not contiguous; it must be {wanted}"
        )
    if argument.writes and not value.flags.writeable:
        raise ShapeError(f"{what} is read-only, and the kernel writes it in place")
    if not mlx or value.size >= SMALL:
        return value
    if argument.writes:
        raise ShapeError(
            f"{what} has {value.size} elements; MLX passes fewer than {SMALL} as constants, which "
            "a kernel cannot write"
        )
    padded = np.zeros(SMALL, value.dtype)
    padded[: value.size] = value.ravel()
    return padded


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {value.shape}"
    return f"a {type(value).__name__}"
